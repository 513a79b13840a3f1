"""Benchmarks behind the claims of the README. Each is one command: `python -m benchmarks.FOLDER.NAME --help`."""
