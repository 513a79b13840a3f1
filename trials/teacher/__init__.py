"""The teacher: how it is found and loaded, and what is kept of it on disk."""
