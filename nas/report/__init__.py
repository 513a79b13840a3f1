"""Report: the result as tables, plots and JSON."""
