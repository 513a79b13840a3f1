"""Files that outlive a process: the shared cache, sealed folders, arrays of activations."""
