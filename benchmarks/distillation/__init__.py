"""Benchmarks of distillation: the training step, its losses, its targets, and a GPU."""
