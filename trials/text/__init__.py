"""Text: where it comes from, how it is split and packed into tokens."""
