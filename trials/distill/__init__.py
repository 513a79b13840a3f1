"""Distillation: the training loop, its checkpoints and its results."""
