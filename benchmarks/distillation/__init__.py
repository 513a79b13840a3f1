"""Benchmarks of distillation: the step, its loss, its targets, a GPU."""
