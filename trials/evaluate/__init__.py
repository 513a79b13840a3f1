"""Evaluation: the metrics that papers publish, for any causal language model."""
