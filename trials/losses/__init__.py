"""Losses: the distillation loss, the validation loss, and the number format of both."""
