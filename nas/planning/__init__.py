"""Planning: from settings to a plan and its cost. Nothing starts here."""
