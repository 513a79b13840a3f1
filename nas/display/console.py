"""The console of a command, and times as people write them."""

from __future__ import annotations

import os

from rich.console import Console

PIPED_WIDTH = 120


def console_for(stderr: bool) -> Console:
    """A console wide enough for a table in a log, a pipe or a cluster's job, where no width is known."""
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, width=PIPED_WIDTH)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
