"""Fills the disk of a search at moments of its life, frees it, and gives the same command again.

This runs as a process of its own, on a small disk: ``python filling_search.py DISK PATTERNS COMMAND ...``. The patterns
are JSON. Prints JSON: the exit code and the output of every run of the command.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from driving import Driver
from filling import leave

LEFT = 16 * 1024  # bytes: a file of weights finds no space, and SQLite finds some now and then


def main(disk: Path, patterns: list[str], command: list[str]) -> list[tuple[int, str]]:
    """One run for each of ``patterns``, at whose first line the disk gets full, and one more with space."""
    runs, ballast = [], disk / "ballast"
    for pattern in [*patterns, ""]:
        driver = Driver(command, disk)
        if pattern:
            driver.wait_for(re.compile(pattern))
            leave(disk, ballast, LEFT)
        code = driver.finish()
        ballast.unlink(missing_ok=True)
        runs.append((code, "".join(driver.lines)))
    return runs


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])))
