"""Text: finds, splits and tokenises it."""
