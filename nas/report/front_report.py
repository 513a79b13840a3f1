"""The Pareto front of a search with several objectives: as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from nas.choosing.selection import front, ranking
from nas.report.plots import BLUE, GREY, ORANGE, blank, grid, legend, save
from nas.study.objectives import LATENCY_MS, LOSS, MEMORY_BYTES, PARAMETERS, STORED_BYTES, point_of
from nas.study.records import TrialRecord
from search_spaces.architecture import Architecture

LABELS = {
    LOSS: "validation loss (nats per token)",
    PARAMETERS: "parameters (millions)",
    STORED_BYTES: "exported weights (MB)",
    MEMORY_BYTES: "weights and cache in memory (MB)",
    LATENCY_MS: "latency per generated token (ms)",
}
HEADINGS = {
    LOSS: "val loss",
    PARAMETERS: "parameters",
    STORED_BYTES: "file MB",
    MEMORY_BYTES: "MB",
    LATENCY_MS: "ms a token",
}
SCALE = {LOSS: 1.0, PARAMETERS: 1e6, STORED_BYTES: 1e6, MEMORY_BYTES: 1e6, LATENCY_MS: 1.0}
FIGURES: dict[str, Callable[[float], str]] = {
    LOSS: "{:.4f}".format,
    PARAMETERS: "{:,.0f}".format,
    STORED_BYTES: lambda value: f"{value / 1e6:,.1f}",
    MEMORY_BYTES: lambda value: f"{value / 1e6:,.1f}",
    LATENCY_MS: "{:.2f}".format,
}


def front_table(records: Sequence[TrialRecord], objectives: Sequence[str]) -> Table:
    """The front for a screen, smallest loss first."""
    table = Table(title="Pareto front of the trials", header_style="bold", box=None, pad_edge=False)
    table.title_justify = "left"
    table.add_column("architecture", no_wrap=True)
    for name in objectives:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    for cells in _cells(records, objectives):
        table.add_row(*map(Text, cells))
    return table


def front_markdown(records: Sequence[TrialRecord], objectives: Sequence[str]) -> str:
    """The front as a Markdown table, ending in a newline."""
    headings = ["architecture", *(HEADINGS[name] for name in objectives)]
    lines = [headings, [":---", *["---:"] * len(objectives)], *_cells(records, objectives)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def plot_front(
    records: Sequence[TrialRecord], objectives: Sequence[str], path: Path, winner: Architecture | None = None
) -> Path:
    """The loss against every other objective, one panel each. Marks all COMPLETE trials, the front and the winner."""
    further = [name for name in objectives if name != LOSS]
    figure = blank(5.2 * len(further), 4.6)
    members = {one.number for one in front(records, objectives)}
    for axes, name in zip(figure.subplots(1, len(further), squeeze=False, sharey=True)[0], further, strict=True):
        for inside, label, colour in ((False, "complete", GREY), (True, "Pareto front", BLUE)):
            points = [_place(one, objectives, name) for one in ranking(records) if (one.number in members) is inside]
            if points:
                axes.scatter(*zip(*points, strict=True), s=44, color=colour, label=label)
        best = [_place(one, objectives, name) for one in ranking(records) if one.architecture == winner]
        if best:
            axes.scatter(*best[0], s=170, marker="*", color=ORANGE, zorder=3, label="winner")
        axes.set_xlabel(LABELS[name])
        axes.margins(0.12)
        grid(axes)
        legend(axes)
    figure.axes[0].set_ylabel(f"{LABELS[LOSS]} of the trial")
    figure.suptitle("What each objective costs in loss", fontsize=12)
    return save(figure, path)


def _place(record: TrialRecord, objectives: Sequence[str], name: str) -> tuple[float, float]:
    point = point_of(record, objectives)
    return point[list(objectives).index(name)] / SCALE[name], point[0]


def _cells(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[list[str]]:
    chosen = front(records, objectives)
    points = (zip(objectives, point_of(one, objectives), strict=True) for one in chosen)
    figures = ([FIGURES[name](value) if math.isfinite(value) else "" for name, value in point] for point in points)
    return [[one.architecture.key, *row] for one, row in zip(chosen, figures, strict=True)]
