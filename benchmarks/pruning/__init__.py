"""Benchmarks of pruning: scores, refit, width, depth, allocation, folding."""
