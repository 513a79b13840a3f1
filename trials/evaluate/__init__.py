"""Evaluation: published metrics of any causal language model."""
