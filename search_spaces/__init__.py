"""Architectures, budgets and search spaces as pure values, without torch, Ray or network access."""
