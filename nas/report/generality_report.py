"""What students lose on the text that they were calibrated on and on other text, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from nas.choosing.comparison import WINNER, Comparison
from nas.choosing.generality import CALIBRATED, OTHER, Excess, excesses
from nas.report.final_report import markdown

TITLE = "nats a token above the teacher"
WIDTH = 15  # of a column; its heading is a sentence and takes several lines


def generality_table(comparison: Comparison) -> Table | None:
    """The table for a screen; None if no other text was read."""
    found = excesses(comparison)
    if not found:
        return None
    table = Table(title=TITLE, header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    table.title_justify = "left"
    for place, heading in enumerate(_headings(found)):
        words = place < 2
        width = None if words else WIDTH
        table.add_column(heading, justify="left" if words else "right", no_wrap=place == 1, max_width=width)
    for one in found:
        table.add_row(*map(Text, _cells(one)), style="bold green" if WINNER in one.roles else "")
    return table


def generality_markdown(comparison: Comparison) -> str:
    """The table as Markdown, ending in a newline; empty if no other text was read."""
    found = excesses(comparison)
    return markdown(_headings(found), [_cells(one) for one in found]) if found else ""


def _headings(found: Sequence[Excess]) -> list[str]:
    """The mean over other texts has a column of its own only if there are several."""
    names = list(found[0].others)
    return ["", "architecture", CALIBRATED, *([OTHER, *names] if len(names) > 1 else [f"{OTHER} ({names[0]})"])]


def _cells(one: Excess) -> list[str]:
    each = list(one.others.values())
    figures = [one.own, *([one.other, *each] if len(each) > 1 else each)]
    return [", ".join(one.roles), one.architecture, *(f"{value:+.4f}" for value in figures)]
