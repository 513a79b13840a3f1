"""The table of layer removal: the baseline, every single layer, every combination, and a heat map of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from numpy.typing import NDArray

from nas.choosing.outcome import Outcome
from nas.report.plots import blank, save
from nas.study.records import LATENCY, TrialRecord
from nas.tables.removals import Removal, Removals, insights, named
from nas.tables.study_table import Cell, Column, StudyTable
from search_spaces.shape import ModelShape
from trials.evaluate.efficiency import PASSES, Workload

BEST_SHOWN = 3  # combinations of each number of layers on a screen
MOST_LABELLED = 16  # layers of a heat map with numbers in its cells


def layers_table(outcomes: Sequence[Outcome]) -> StudyTable:
    """The table of all trials that removed whole layers."""
    plan = outcomes[0].plan
    return table_of(removals_of(outcomes), plan.settings.model, _how_measured(outcomes))


def removals_of(outcomes: Sequence[Outcome]) -> Removals:
    """The removals that the trials of ``outcomes`` have measured. Without a trial of it the baseline has no speed."""
    shape, teacher = outcomes[0].plan.target.shape, outcomes[0].preparation.teacher_loss
    found = [_removal(shape, record) for one in outcomes for record in one.records]
    known = {one.removed: one for one in found if one is not None}
    baseline = known.pop((), Removal((), teacher, None, shape.parameters(shape.full)))
    return Removals(shape.layers, baseline, tuple(known.values()))


def _removal(shape: ModelShape, record: TrialRecord) -> Removal | None:
    """None for a trial without a loss, and for a student that is more than some whole layers."""
    kept = shape.whole_layers(record.architecture)
    if kept is None or record.val_loss is None:
        return None
    removed = tuple(one for one in range(shape.layers) if one not in kept)
    return Removal(removed, record.val_loss, record.metrics.get(LATENCY), record.parameters)


def table_of(removals: Removals, model: str, notes: Sequence[str] = ()) -> StudyTable:
    """The table of ``removals``. People see the baseline, the single layers and the best combinations of each depth."""
    rows = removals.ordered()
    places = _shown(rows)
    hidden = f"{len(places)} of {len(rows)} rows are shown; layers.csv has all" if len(places) < len(rows) else ""
    return StudyTable(
        "layers",
        f"layers removed from {model}",
        COLUMNS,
        tuple(_row(removals, one) for one in rows),
        tuple(one for one in (hidden, *insights(removals), *notes) if one),
        tuple(places),
    )


def _shown(rows: Sequence[Removal]) -> list[int]:
    """The places of the rows for a screen; each number of removed layers comes with the least loss first."""
    found: list[int] = []
    counted: dict[int, int] = {}
    for place, one in enumerate(rows):
        count = len(one.removed)
        counted[count] = counted.get(count, 0) + 1
        if count < 2 or counted[count] <= BEST_SHOWN:
            found.append(place)
    return found


def _row(removals: Removals, one: Removal) -> tuple[Cell, ...]:
    base = removals.baseline
    timed = one.milliseconds is not None and base.milliseconds is not None
    return (
        named(one.removed),
        removals.layers - len(one.removed),
        one.loss,
        one.perplexity,
        100 * (one.perplexity / base.perplexity - 1),
        one.milliseconds,
        100 * (one.milliseconds / base.milliseconds - 1) if timed else None,  # type: ignore[operator]
        one.parameters,
    )


def _percent(value: Cell) -> str:
    return "" if value is None else f"{value:+,.{1 if abs(float(value)) < 1e3 else 0}f} %"


def _figure(digits: int, value: Cell) -> str:
    """A large number has no decimals, because only its size matters."""
    return "" if value is None else f"{value:,.{digits if abs(float(value)) < 1e3 else 0}f}"


COLUMNS = (
    Column("layers removed", is_number=False),
    Column("layers left"),
    Column("val loss", lambda value: _figure(4, value), needed=False),
    Column("perplexity", lambda value: _figure(2, value)),
    Column("change", _percent),
    Column("ms a token", lambda value: _figure(3, value)),
    Column("ms change", _percent),
    Column("parameters", lambda value: f"{value:,}", needed=False),
)


def _how_measured(outcomes: Sequence[Outcome]) -> list[str]:
    """How loss and speed were measured."""
    recipe, resources = outcomes[0].plan.recipe, outcomes[0].plan.resources
    students = "refitted" if recipe.refit else "plain slices of the teacher"
    trained = f"trained on {recipe.tokens:,} tokens" if recipe.tokens else "not retrained"
    much = f"{recipe.validation_tokens:,} tokens of each validation text"
    text = f"perplexity: {much}; students are {students}, {trained}"
    if not outcomes[0].plan.times_candidates:
        return [text]
    work = Workload.within(recipe.sequence_length, batch=1)
    device = "one GPU" if resources.device == "cuda" else f"CPU threads: {resources.cpus}"
    how = f"{work.steps} tokens, greedy, one sequence, after a prompt of {work.prompt}; alone; {device}"
    which = f"the 5th percentile over {PASSES} times; once for each number of layers, because all layers have one size"
    return [text, f"speed: {how}; {which}"]


def plot_layers(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """The heat map of pairs, if any pair was measured."""
    removals = removals_of(outcomes)
    pairs = any(len(one.removed) == 2 for one in removals.others)
    return [plot_pairs(removals, folder / "layer_pairs.png")] if pairs else []


def pair_matrix(removals: Removals) -> NDArray[np.float64]:
    """The loss that removing layers i and j adds, in nats per token, (L, L); single layers on the diagonal.

    What was not measured is NaN.
    """
    matrix = np.full((removals.layers, removals.layers), np.nan)
    for removed, added in removals.added.items():
        if len(removed) <= 2:
            matrix[removed[0], removed[-1]] = matrix[removed[-1], removed[0]] = added
    return matrix


def plot_pairs(removals: Removals, path: Path) -> Path:
    """Draw `pair_matrix` as a heat map and return ``path``."""
    matrix = pair_matrix(removals)
    side = max(5.0, 0.62 * min(removals.layers, MOST_LABELLED))
    figure = blank(side + 1.4, side)
    axes = figure.subplots()
    least, most = float(np.nanmin(matrix)), float(np.nanmax(matrix))
    image = axes.imshow(matrix, cmap="viridis_r", norm=PowerNorm(0.5, least, most))  # a few layers cost far more
    ticks = least + (most - least) * np.linspace(0, 1, 7) ** 2
    figure.colorbar(image, ax=axes, label="added loss (nats per token)", ticks=ticks, format="{x:.2f}")
    axes.set(xlabel="layer", ylabel="layer", title="Loss added by removing two layers, or one (diagonal)")
    if removals.layers <= MOST_LABELLED:
        axes.set_xticks(range(removals.layers))
        axes.set_yticks(range(removals.layers))
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                ink = "w" if value - least > 0.3 * (most - least) else "k"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
    return save(figure, path)
