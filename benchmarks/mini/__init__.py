"""Trains and evaluates the embedded teacher `mini`."""
