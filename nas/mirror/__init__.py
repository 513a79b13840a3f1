"""The mirror: a durable copy of what a search cannot lose, in an object store, and the way back from it."""
