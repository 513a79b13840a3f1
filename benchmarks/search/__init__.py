"""Benchmarks of search strategies, replayed from tables with the losses of every architecture."""
