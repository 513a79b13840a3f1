"""Pruning: importance scores, which parts stay, and the refit of what stays."""
