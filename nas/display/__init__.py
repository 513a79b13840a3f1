"""Display: what a search shows on the terminal while it runs."""
