"""The tables of published studies, made from the trials of a search."""
