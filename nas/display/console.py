"""Where a command prints."""

from __future__ import annotations

import os

from rich.console import Console

PIPED_WIDTH = 120


def console_for(stderr: bool) -> Console:
    """Wide enough for a table where nothing says how wide the output is: in a log, a pipe, a cluster's job."""
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, width=PIPED_WIDTH)
