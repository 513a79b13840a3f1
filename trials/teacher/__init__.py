"""The teacher: finds and loads it, and stores its streams and targets on disk."""
