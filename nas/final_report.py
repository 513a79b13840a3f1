"""The final comparison as tables: for the terminal, and as Markdown and CSV for files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from nas.comparison import TEACHER, UNEQUAL, WINNER, Comparison, ComparisonRow
from nas.report import compact

RIGHT = ("parameters", "share", "tokens", "val loss")
MINUS_WINNER = "minus winner [95 %]"


def comparison_table(comparison: Comparison) -> Table:
    """The final comparison for a screen; what failed says why below."""
    table = Table(title="final comparison", header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    texts, tests = _names(comparison)
    for heading in ("", "architecture", *RIGHT, *texts, MINUS_WINNER, *tests):
        words = heading in ("", "architecture")
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading != "")
    for row in comparison.rows:
        style = "bold green" if WINNER in row.roles else "dim" if row.val_loss is None else ""
        table.add_row(*(Text(cell) for cell in _cells(row, texts, tests)), style=style)
    failures = [f"{row.architecture} failed: {row.reason}" for row in comparison.rows if row.reason]
    table.caption = Text("\n".join([UNEQUAL, *failures]))
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """The final comparison as a Markdown table, ending in a newline."""
    texts, tests = _names(comparison)
    headings = ["model", "architecture", *RIGHT, *texts, MINUS_WINNER, *tests]
    rules = [":---", ":---", *["---:"] * (len(headings) - 2)]
    lines = [headings, rules, *(_cells(row, texts, tests) for row in comparison.rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comparison_csv(comparison: Comparison) -> str:
    """The final comparison as CSV, numbers in full; what is not known is empty."""
    texts, tests = _names(comparison)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed = ["roles", "architecture", "parameters", "share", "stock", "tokens", "val_loss"]
    writer.writerow(
        [*fixed, *(f"val_loss/{name}" for name in texts), "minus_winner", "low", "high", *tests, "reason"],
    )
    for row in comparison.rows:
        known = (", ".join(row.roles), row.architecture, row.parameters, row.share, row.stock, row.tokens, row.val_loss)
        interval = (row.difference.mean, row.difference.low, row.difference.high) if row.difference else ("", "", "")
        losses, readings = (row.losses.get(name, "") for name in texts), (row.test.get(name, "") for name in tests)
        writer.writerow([*("" if one is None else one for one in known), *losses, *interval, *readings, row.reason])
    return text.getvalue()


def _names(comparison: Comparison) -> tuple[list[str], list[str]]:
    """The validation texts, where there are several, and the readings on test text, in the order of the first row."""
    texts = dict.fromkeys(name for row in comparison.rows for name in row.losses)
    tests = dict.fromkeys(name for row in comparison.rows for name in row.test)
    return list(texts), list(tests)


def _cells(row: ComparisonRow, texts: Sequence[str], tests: Sequence[str]) -> list[str]:
    loss = "failed" if row.val_loss is None else f"{row.val_loss:.4f}"
    return [
        ", ".join(row.roles),
        row.architecture,
        f"{row.parameters:,}",
        f"{row.share:.1%}",
        "" if TEACHER in row.roles else compact(row.tokens),
        loss,
        *(f"{row.losses[name]:.4f}" if name in row.losses else "" for name in texts),
        str(row.difference) if row.difference else "",
        *(f"{row.test[name]:.4f}" if name in row.test else "" for name in tests),
    ]
