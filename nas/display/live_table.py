"""A table that stays on the screen of a terminal while it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR = 10  # characters
NUMBERS = ("trial", "tokens", "val loss")

Row = tuple[str, Sequence[str]]
"""The style and the cells of a line."""
Shown = tuple[Sequence[Row], RenderableType]
"""The lines of a table, and what stands below it."""


class LiveTable:
    """Keeps a table on the screen of a terminal between `start` and `stop`. Without a terminal it shows nothing."""

    headings: ClassVar[Sequence[str]]

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self._display = Live(get_renderable=self.table, console=console, refresh_per_second=2) if self.live else None

    def start(self) -> None:
        """Show the table."""
        if self._display is not None:
            self._display.start()

    def stop(self) -> None:
        """Leave the table as it is."""
        if self._display is not None:
            self._display.stop()

    def shown(self) -> Shown:
        """What is on the screen now."""
        raise NotImplementedError

    def table(self) -> RenderableType:
        """`shown` as a table: words are cut where the screen is narrow, numbers never are."""
        rows, below = self.shown()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in self.headings:
            number = heading in NUMBERS
            width = max([len(heading), *(len(cells[self.headings.index(heading)]) for _, cells in rows)])
            table.add_column(
                heading,
                justify="right" if number else "left",
                no_wrap=True,
                overflow="ellipsis",
                min_width=width if number else None,
            )
        for style, cells in rows:
            table.add_row(*map(Text, cells), style=style)
        return Group(table, below)


def summary(done: int, total: int, text: str) -> RenderableType:
    """A bar, and ``text`` beside it."""
    line = Table.grid(padding=(0, 2))
    line.add_row(ProgressBar(total=max(1, total), completed=done, width=BAR), Text(text))
    return line
