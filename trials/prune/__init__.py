"""Pruning: scores importance, chooses the parts that stay, and refits them."""
