"""Published one-shot ways of structured pruning beside the way of a search."""
