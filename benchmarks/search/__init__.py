"""Benchmarks of search strategies, replayed from tables of every architecture."""
