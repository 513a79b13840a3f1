"""A table that stays on the screen of a terminal while it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR = 10  # characters
FEWEST = 5  # characters of a word
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
        table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        widths = self._widths([self.headings, *(cells for _, cells in rows)])
        for heading, width in zip(self.headings, widths, strict=True):
            justify: Literal["left", "right"] = "right" if heading in NUMBERS else "left"
            table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis", width=width)
        for style, cells in rows:
            table.add_row(*map(Text, cells), style=style)
        return Group(table, below)

    def _widths(self, lines: Sequence[Sequence[str]]) -> list[int]:
        """The width of each column. The widest words are cut until all columns fit, but not below `FEWEST`."""
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        words = [place for place, heading in enumerate(self.headings) if heading not in NUMBERS]
        while sum(widths) + len(widths) - 1 > self.console.width:
            widest = max(words, key=widths.__getitem__)
            if widths[widest] <= FEWEST:
                break
            widths[widest] -= 1
        return widths


def summary(done: int, total: int, text: str, best: str) -> RenderableType:
    """A bar with ``text`` beside it, and the ``best`` so far below them. Both lines fit in 60 characters."""
    line = Table.grid(padding=(0, 2))
    line.add_row(ProgressBar(total=max(1, total), completed=done, width=BAR), Text(text))
    return Group(line, Text(f"best so far {best}")) if best else line
