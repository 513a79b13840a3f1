"""The keys of the results that a trial reports to Ray Tune."""

from __future__ import annotations

# Beside the metrics of a rung. The first four tell how a trial ended, or why it was tried again.
FINAL, FAILURE, MEMORY, RETRIED = "final", "failure", "out_of_memory", "retried"
TOKENS, LOSS, WORKER = "tokens", "val_loss", "worker"

# Of what a trial measures, what is kept of a whole one.
METRICS = (
    "zero_shot_loss",
    "kl",
    "tokens",
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "resumed_from",
)
