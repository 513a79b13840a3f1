"""One command for each claim that the README makes: `python -m benchmarks.NAME --help`."""
