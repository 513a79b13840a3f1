"""Readings as a table; each value has its convention and its counts beside it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from trials.evaluate.reading import TOKEN_PERPLEXITY, Reading


def readings_table(readings: Sequence[Reading]) -> Table:
    """One line for each reading, in the given order. The first line of a task has its name.

    The last column holds what was counted, or a timing at the 5th percentile ("p5").
    """
    table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    for heading in ("task", "metric", "value", "how", "counted"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    before = None
    for reading in readings:
        if before not in (None, reading.task):
            table.add_row()
        task = "" if reading.task == before else reading.task
        metric = f"{reading.metric}, {reading.unit}" if _unit_is_news(reading) else reading.metric
        value = Text(measured(reading), style="bold")
        table.add_row(task, metric, value, _how(reading), _counted(reading))
        before = reading.task
    return table


SHORT = {TOKEN_PERPLEXITY: "ppl", "last-word accuracy": "acc", "last-word perplexity": "ppl"}


def column_name(reading: Reading) -> str:
    """A heading for readings of this kind, where all of one table are of one length and convention."""
    return f"{reading.task} {SHORT.get(reading.metric, reading.metric)}"


def measured(reading: Reading) -> str:
    """The value of a reading, with its standard error if that is known."""
    value = figure(reading.value, reading.unit)
    return value if reading.stderr is None else f"{value} ± {figure(reading.stderr, reading.unit)}"


def figure(value: float, unit: str) -> str:
    """A value to as many digits as its unit deserves."""
    if unit == "share":
        return f"{value:.2%}"
    if unit == "bits":
        return f"{value:.4f}"
    if unit.startswith(("parameters", "bytes", "FLOPs")):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value < 10**6 else f"{value:.3g}"


def _unit_is_news(reading: Reading) -> bool:
    return reading.unit not in ("", "share", "parameters", "bits") and "perplexity" not in reading.metric


def _how(reading: Reading) -> str:
    words = f"{reading.repeats} timed after {reading.warmup}" if reading.repeats else reading.convention
    if reading.length:
        words += f" of {reading.length:,}" if "windows" in words else f", length {reading.length:,}"
    if reading.stride:
        words += f", stride {reading.stride:,}"
    if reading.batch:
        words += f", batch {reading.batch:,}"
    return words


def _counted(reading: Reading) -> str:
    if reading.at_p5 is not None:
        return f"p5 {figure(reading.at_p5, reading.unit)}"
    counts = {
        "document": reading.documents,
        "word": reading.words if reading.metric == "word perplexity" else None,
        "byte": reading.bytes if reading.unit == "bits" else None,
        "token": reading.tokens if reading.unit == "per token" else None,
    }
    return ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items() if count)
