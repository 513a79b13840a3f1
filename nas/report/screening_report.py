"""The results of the screening as a table, as a plot, and beside what training made of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.choosing.selection import ranking
from nas.report.plots import BLUE, GREY, ORANGE, blank, grid, legend, save
from nas.study.records import TrialRecord
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape

HEADINGS = ("rank", "architecture", "parameters", "stock", "screen_loss", "val_loss", "tokens")


def screening_csv(
    screened: Mapping[str, float | None],
    feasible: Sequence[Architecture],
    shape: ModelShape,
    records: Sequence[TrialRecord],
) -> str:
    """All ``screened`` architectures as CSV, best first. ``screened`` holds losses by the architecture's key.

    ``val_loss`` is the last loss of the architecture's trial, after ``tokens``. It is empty without a trial.
    """
    by_key = {one.key: one for one in feasible}
    curves = {one.architecture.key: one.curve for one in records if one.curve}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADINGS)
    for rank, (key, loss) in enumerate(_in_order(screened), start=1):
        one = by_key[key]
        tokens, last = curves[key][-1] if key in curves else ("", "")
        writer.writerow([rank, key, shape.parameters(one), shape.is_stock(one), loss, last, tokens])
    return text.getvalue()


def reordering(screened: Mapping[str, float | None], records: Sequence[TrialRecord], winner: Architecture) -> list[str]:
    """One line: how far training reordered what the screening said; none without a screening.

    It has the places in the screening of the COMPLETE trials, in the order of their losses after training, and the
    place of the ``winner``.
    """
    measured = [key for key, loss in _in_order(screened) if loss is not None]
    places = {key: place for place, key in enumerate(measured, start=1)}
    if not places:
        return []
    found = [str(places.get(one.architecture.key, "-")) for one in ranking(records)]
    place = places.get(winner.key)
    its = "was not screened" if place is None else f"was number {place} of {len(places)} in the screening"
    return [f"screening order of the complete trials, best first: {' '.join(found)}; the winner {its}"]


def plot_screening(
    screened: Mapping[str, float | None], records: Sequence[TrialRecord], path: Path, winner: Architecture | None = None
) -> Path:
    """The last loss of each trial against its loss in the screening.

    Ticks at the bottom have no trial. Those far beyond the trials are counted and not drawn.
    """
    figure = blank(7.5, 5)
    axes = figure.subplots()
    losses = {key: loss for key, loss in screened.items() if loss is not None}
    tried = {one.architecture.key: one for one in records if one.curve and one.architecture.key in losses}
    for state, label, colour, marker in (
        ("COMPLETE", "complete", BLUE, "o"),
        ("PRUNED", "stopped early, last loss", GREY, "x"),
    ):
        some = [one for one in tried.values() if one.state == state]
        if some:
            before, after = [losses[one.architecture.key] for one in some], [one.curve[-1][1] for one in some]
            axes.scatter(before, after, s=40, color=colour, marker=marker, label=label)
    if winner is not None and winner.key in tried:
        before, after = [losses[winner.key]], [tried[winner.key].curve[-1][1]]
        axes.scatter(before, after, s=170, marker="*", color=ORANGE, zorder=3, label=f"winner: {winner.key}")
    rest = [loss for key, loss in losses.items() if key not in tried]
    label = f"not tried ({len(rest)})"
    if before := [losses[key] for key in tried]:
        end = max(before) + max(max(before) - min(before), 0.01)  # more would squeeze the trials into a corner
        near = [loss for loss in rest if loss <= end]
        label = f"not tried ({len(rest)}, {len(rest) - len(near)} of them beyond the right edge)"
        rest = near
    foot = axes.get_xaxis_transform()
    axes.plot(rest, [0.02] * len(rest), "|", color=GREY, markersize=10, transform=foot, label=label)
    axes.set(xlabel="loss in the screening (nats per token)", ylabel="validation loss of the trial (nats per token)")
    axes.set_title("What the screening said, and what training made of it")
    axes.margins(0.05, 0.12)
    grid(axes)
    legend(axes)
    return save(figure, path)


def _in_order(screened: Mapping[str, float | None]) -> list[tuple[str, float | None]]:
    return sorted(screened.items(), key=lambda one: (one[1] is None, one[1] or 0.0, one[0]))
