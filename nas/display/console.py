"""The console of a command, and times as people write them."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table

PIPED_WIDTH = 120
TRAILING = re.compile(r"[ \t]+(?=\n)")
UNLIMITED = 10_000  # characters


class _Stripped(io.TextIOBase):
    """Passes text on to a standard stream without the spaces with which a table fills its lines."""

    def __init__(self, name: str) -> None:
        self._name = name

    def write(self, text: str) -> int:
        return int(getattr(sys, self._name).write(TRAILING.sub("", text)))

    def flush(self) -> None:
        getattr(sys, self._name).flush()


def console_for(stderr: bool) -> Console:
    """A console wide enough for a table in a log, a pipe or a cluster's job, where no width is known."""
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal:
        return console
    stream: Any = _Stripped("stderr" if stderr else "stdout")
    return Console(file=stream, highlight=False, width=None if "COLUMNS" in os.environ else PIPED_WIDTH)


def fitted(table: Table, console: Console, optional: Sequence[str]) -> Table:
    """``table`` without as many of its ``optional`` columns as it takes to fit the console: no digit is cut off.

    Columns are named by their headings; the first of them goes first.
    """
    for heading in optional:
        if _width(table, console) <= console.width:
            break
        kept = [one for one in table.columns if one.header != heading]
        table.columns = [replace(one, _index=place) for place, one in enumerate(kept)]  # it pads by the numbers
    return table


def show(table: Table, console: Console, optional: Sequence[str] = ()) -> bool:
    """Print ``table`` as `fitted` to ``console``, and say whether all its columns are there.

    What is still too wide is broken by the terminal, and not cut.
    """
    columns = len(table.columns)
    drawn = fitted(table, console, optional)
    wide = console.options.update(width=max(console.width, _width(drawn, console)))
    console.print(Segments(console.render(drawn, wide)), crop=False, end="")
    return len(drawn.columns) == columns


def _width(table: Table, console: Console) -> int:
    """The columns that ``table`` takes with all its cells whole, in characters; its title and caption do not count."""
    return console.measure(table, options=console.options.update(width=UNLIMITED)).maximum


def clock(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
