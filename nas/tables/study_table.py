"""The table of a study, as a value, and its forms: for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column of a study's table. ``text`` turns a value into what a person reads; CSV holds the value itself.

    ``needed`` is False for a column that a narrow terminal does without.
    """

    name: str
    text: Callable[[Cell], str] = lambda value: "" if value is None else str(value)
    is_number: bool = True
    needed: bool = True


@dataclass(frozen=True)
class StudyTable:
    """A table with a ``name`` for its files, a ``title``, one tuple of values for each row, and ``notes`` below it.

    ``shown`` are the places of the rows that people see, in their order; all if there are none. CSV holds all rows.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()

    def texts(self) -> list[list[str]]:
        """The cells of the rows that people see, as they read them."""
        rows = [self.rows[place] for place in self.shown] if self.shown else self.rows
        return [[column.text(cell) for column, cell in zip(self.columns, row, strict=True)] for row in rows]


def terminal(table: StudyTable) -> Table:
    """``table`` for the terminal, without its notes."""
    drawn = Table(title=table.title, header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    drawn.title_justify = "left"
    for column in table.columns:
        drawn.add_column(column.name, justify="right" if column.is_number else "left", no_wrap=True)
    for row in table.texts():
        drawn.add_row(*map(Text, row))
    return drawn


def markdown(table: StudyTable) -> str:
    """``table`` as a Markdown page, ending in a newline."""
    rules = ["---:" if column.is_number else ":---" for column in table.columns]
    lines = [_line([column.name for column in table.columns]), _line(rules), *map(_line, table.texts())]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"# {table.title}", "", *lines, "", *notes]).rstrip() + "\n"


def csv_text(table: StudyTable) -> str:
    """``table`` as CSV with unrounded numbers; unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    writer.writerows(table.rows)
    return text.getvalue()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(one.replace('|', '/').split()) for one in cells)} |"
