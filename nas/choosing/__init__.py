"""Choosing: which candidates go first, which stop, which win. No decision is made elsewhere."""
