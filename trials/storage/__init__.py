"""Durable files: the shared cache, sealed folders, arrays of activations."""
