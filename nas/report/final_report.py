"""The final comparison as tables: for the terminal, and as Markdown and CSV for files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import FuncFormatter
from rich.table import Table
from rich.text import Text

from nas.choosing.comparison import TEACHER, UNEQUAL, WINNER, Comparison, ComparisonRow
from nas.display.readings_table import column_name, measured
from nas.report.plots import BLUE, GREY, ORANGE, blank, grid, save
from nas.report.trial_report import compact
from trials.evaluate.perplexity import NON_OVERLAPPING
from trials.evaluate.reading import HARNESS, Reading

RIGHT = ("parameters", "share", "tokens", "val loss")
MINUS_WINNER, LOADS_IN = "minus winner [95 %]", "loads in"
WORDS = ("", "architecture", LOADS_IN)
NEAR = 0.05  # nats; up to here the axis of the plot is linear


def comparison_table(comparison: Comparison) -> Table:
    """The final comparison for a screen. The lines below the table explain the intervals and failed finals."""
    table = Table(title="final comparison", header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    texts = _texts(comparison)
    for heading in ("", "architecture", *RIGHT, *texts, MINUS_WINNER, LOADS_IN):
        table.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=heading != "")
    for row in comparison.rows:
        style = "bold green" if WINNER in row.roles else "dim" if row.val_loss is None else ""
        table.add_row(*(Text(cell) for cell in _cells(row, texts)), style=style)
    failures = [f"{row.architecture} failed: {row.reason}" for row in comparison.rows if row.reason]
    table.caption = Text("\n".join([UNEQUAL, *failures]))
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """The final comparison as a Markdown table, ending in a newline."""
    texts = _texts(comparison)
    headings = ["model", "architecture", *RIGHT, *texts, MINUS_WINNER, LOADS_IN]
    return markdown(headings, [_cells(row, texts) for row in comparison.rows])


def on_test_table(comparison: Comparison) -> Table | None:
    """The readings on test text for a screen, with one line below for each column; None without readings."""
    readings = _readings(comparison)
    if not readings:
        return None
    table = Table(title="on test text", header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    for heading in ("", "architecture", "parameters", *map(column_name, readings)):
        table.add_column(heading, justify="left" if heading in ("", "architecture") else "right", no_wrap=heading != "")
    for row in comparison.rows:
        if row.test:
            table.add_row(*map(Text, _test_cells(row)), style="bold green" if WINNER in row.roles else "")
    table.caption = Text("\n".join(on_test_notes(comparison)))
    return table


def on_test_markdown(comparison: Comparison) -> str:
    """The readings on test text as a Markdown table, ending in a newline; empty without readings."""
    readings = _readings(comparison)
    if not readings:
        return ""
    headings = ["model", "architecture", "parameters", *map(column_name, readings)]
    return markdown(headings, [_test_cells(row) for row in comparison.rows if row.test])


def on_test_notes(comparison: Comparison) -> list[str]:
    """One line for each column of test readings: the metric, the convention, and how much text was read."""
    return [
        f"{column_name(one)}: {one.metric}, {one.convention}"
        + (f" of {one.length:,}" if one.convention == NON_OVERLAPPING else "")
        + _read(one)
        + (f", in {one.dtype}" if one.dtype else "")
        for one in _readings(comparison)
    ]


def _read(one: Reading) -> str:
    if one.convention.startswith(HARNESS):
        return f", {one.documents:,} documents" if one.documents else ""
    return f", {one.documents:,} passages" if one.documents else f", {one.tokens:,} tokens"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, ending in a newline. The first two columns are words, as `LOADS_IN` is, the others numbers."""
    rules = [":---", ":---", *(":---" if one == LOADS_IN else "---:" for one in headings[2:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, rules, *lines])


def _test_cells(row: ComparisonRow) -> list[str]:
    figures = (measured(one) for one in row.test)
    return [", ".join(row.roles), row.architecture, f"{row.parameters:,}", *figures]


def _readings(comparison: Comparison) -> tuple[Reading, ...]:
    """The readings of the first row that has any. All rows have the same kinds of readings."""
    return next((row.test for row in comparison.rows if row.test), ())


def comparison_csv(comparison: Comparison) -> str:
    """The final comparison as CSV with unrounded numbers. Unknown values are empty."""
    texts, kinds = _texts(comparison), _readings(comparison)
    tests = [*map(column_name, kinds), *(f"{column_name(one)} stderr" for one in kinds if one.stderr is not None)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed = ["roles", "architecture", "parameters", "share", "stock", "tokens", "val_loss"]
    writer.writerow(
        [*fixed, *(f"val_loss/{name}" for name in texts), "minus_winner", "low", "high", "loads_in", *tests, "reason"],
    )
    for row in comparison.rows:
        known = (", ".join(row.roles), row.architecture, row.parameters, row.share, row.stock, row.tokens, row.val_loss)
        interval = (row.difference.mean, row.difference.low, row.difference.high) if row.difference else ("", "", "")
        losses = (row.losses.get(name, "") for name in texts)
        errors = (one.stderr for one in row.test if one.stderr is not None)
        readings = [str(one) for one in (*(one.value for one in row.test), *errors)] or [""] * len(tests)
        writer.writerow(
            [*("" if one is None else one for one in known), *losses, *interval, row.loads_in, *readings, row.reason]
        )
    return text.getvalue()


def plot_finals(comparison: Comparison, path: Path) -> Path:
    """The loss of each model minus the winner's, with its 95 % interval, in the order of the table."""
    rows = [row for row in comparison.rows if row.difference or WINNER in row.roles]
    figure = blank(8.5, 1.3 + 0.36 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        found, colour = row.difference, ORANGE if WINNER in row.roles else GREY if TEACHER in row.roles else BLUE
        mean, low, high = (found.mean, found.low, found.high) if found else (0.0, 0.0, 0.0)
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot(mean, place, "*" if WINNER in row.roles else "o", color=colour, markersize=13 if not found else 6)
        axes.annotate(f"{row.val_loss:.4f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{', '.join(row.roles)}  {row.architecture}".strip() for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.05)
    axes.set_xscale("symlog", linthresh=NEAR, linscale=1.5)  # a baseline far away would hide who is close
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_xlabel("loss minus the winner's (nats per token), 95 % interval; right: the loss itself")
    axes.set_title("Final comparison: an interval that reaches 0 means not distinguishable")
    grid(axes)
    return save(figure, path)


def _texts(comparison: Comparison) -> list[str]:
    """The names of the validation texts; empty for a single text."""
    return list(dict.fromkeys(name for row in comparison.rows for name in row.losses))


def _cells(row: ComparisonRow, texts: Sequence[str]) -> list[str]:
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
        row.loads_in,
    ]
