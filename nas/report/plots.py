"""Plots of a search: losses of trials, importance scores, sizes and rank agreement.

Each function draws one PNG from values alone and returns its path. The colours are from the palette of Okabe and Ito,
which is safe for all kinds of colour vision. Nothing is shown by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from nas.choosing.agreement import ENOUGH, TOO_FEW, Agreement
from nas.choosing.selection import best, best_stock, pareto_front, ranking
from nas.report.trial_report import compact
from nas.study.records import TrialRecord
from search_spaces.architecture import Architecture

DPI = 150
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#9A9A9A"
LOSS, TRIAL_LOSS = "validation loss (nats per token)", "validation loss of the trial (nats per token)"
SIZES = {"depth": "layers", "hidden": "hidden size", "heads": "heads per layer", "mlp": "MLP neurons per layer"}
EQUAL: dict[str, Any] = {"color": BLUE, "alpha": 0.7, "linewidth": 0}
VARIED: dict[str, Any] = {"facecolor": "none", "edgecolor": BLUE, "marker": "D", "label": "mean of unequal layers"}
TELLS: dict[str, Any] = {"color": BLUE}
TOO_FEW_TO_TELL: dict[str, Any] = {
    "facecolor": "none",
    "edgecolor": GREY,
    "hatch": "///",
    "label": f"fewer than {ENOUGH}: {TOO_FEW}",
}
FEW_TICKS = 6
Array = NDArray[np.floating]


def plot_losses(
    records: Sequence[TrialRecord],
    path: Path,
    teacher_loss: float | None = None,
    winner_architecture: Architecture | None = None,
) -> Path:
    """Validation loss against tokens for every trial. The right panel leaves out the loss before retraining.

    The winner is ``winner_architecture``, or the best trial. It is drawn on top. Trials that are not complete are pale.
    Those that were stopped early or failed end in a cross.
    """
    figure = blank(11, 4.8)
    whole, near = figure.subplots(1, 2, width_ratios=(1, 1.7))
    winner = _winner(records, winner_architecture)
    last_drawn = sorted(records, key=lambda one: (one.state == "COMPLETE", one == winner))
    for axes, first in ((whole, 0), (near, 1)):
        for record in last_drawn:
            _curve(axes, [point for point in record.curve if point[0] >= first], record, record == winner)
        if teacher_loss is not None:
            axes.axhline(
                teacher_loss, color="black", linestyle=":", linewidth=1.2, label=f"teacher: {teacher_loss:.3f}"
            )
        axes.set_xlabel("tokens distilled")
        grid(axes)
    whole.set_ylabel(TRIAL_LOSS)
    whole.xaxis.set_major_locator(MaxNLocator(4))
    whole.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    whole.set_title("Trials from before training on")
    near.set_title("The same trials from their first rung on")
    _at_rungs(near, records)
    legend(near)
    return save(figure, path)


def plot_pareto(
    records: Sequence[TrialRecord],
    path: Path,
    teacher_loss: float | None = None,
    winner_architecture: Architecture | None = None,
    screened: Sequence[tuple[int, float]] = (),
) -> Path:
    """Loss against parameters: every COMPLETE trial, the Pareto front, the winner and the best stock trial.

    ``screened`` are pairs (parameters, loss before training), drawn with a front of their own. The axis ends at their
    median, because the worst of them would squeeze the trials into a line.
    """
    figure = blank(7.5, 5)
    axes = figure.subplots()
    complete, front = ranking(records), pareto_front(records)
    if screened:
        _screened_points(axes, screened, complete)
    axes.step(*_points(front), where="post", color=BLUE, linewidth=1.5, label="front of the trials", zorder=1)
    for stock, marker, label in (
        (False, "o", "custom model class"),
        (True, "s", "stock: loads with plain transformers"),
    ):
        some = [one for one in complete if one.stock is stock]
        if some:
            axes.scatter(*_points(some), s=40, marker=marker, color=GREY, edgecolor="white", label=label, zorder=2)
    stock_one, winner = best_stock(records), _winner(records, winner_architecture)
    for record, text, colour in ((stock_one, "best stock", GREEN), (winner, "winner", ORANGE)):
        if record is not None and not (text == "best stock" and record == winner):
            label = f"{text}: {record.architecture.key}, {record.val_loss:.3f}"
            axes.scatter(*_points([record]), s=130, marker="*", color=colour, zorder=4, label=label)
    axes.set(xlabel="parameters", ylabel=TRIAL_LOSS, title="Size against loss at the end of the trials")
    if teacher_loss is not None:
        axes.set_title(f"Size against loss at the end of the trials (teacher: {teacher_loss:.3f})")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}M"))
    axes.margins(0.1)
    grid(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return save(figure, path)


def plot_importance(layers: Array, shares: Array | None, heads: Array, mlp: Array, path: Path) -> Path:
    """The importance scores of a teacher: ``layers`` (L,), ``heads`` (L, A) and ``mlp`` (L, M).

    The score of a layer is the loss, in nats per token, after it and all layers before it in the order are removed
    (`trials.prune.layer_order`). The score of a neuron is the output error of its layer after it and all neurons before
    it are removed (`trials.prune.neuron_order`). The score of a head is the same for heads (`trials.prune.head_order`).
    ``shares`` (H,) are the shares of each principal component in the square of the residual stream, the largest first;
    None in a study without a refit, which has no such panel.
    """
    figure = blank(11, 7.5)
    panels = figure.subplot_mosaic("aa;cd" if shares is None else "ab;cd")
    first, third, fourth = panels["a"], panels["c"], panels["d"]
    bars = first.bar(range(len(layers)), layers, color=BLUE, width=0.75)
    first.bar_label(bars, [str(one) for one in layers.argsort().argsort() + 1], fontsize=7, color=GREY)
    first.set_yscale("log")
    first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    first.yaxis.set_minor_locator(NullLocator())
    first.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    title = "Layers: loss after each removal, numbered in order"
    first.set(xlabel="layer", ylabel="nats per token", title=title)
    if shares is not None:
        _shares(panels["b"], shares)
    _heads_map(figure, third, heads)
    _neurons(fourth, mlp)
    for axes in (first, fourth):
        grid(axes)
    first.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    return save(figure, path)


def plot_sizes(records: Sequence[TrialRecord], path: Path, winner_architecture: Architecture | None = None) -> Path:
    """The sizes that were tried: loss of the trial against each axis, one panel per axis.

    Open diamonds are means of sizes that differ between layers. Ticks at the bottom are trials without a final loss.
    """
    figure = blank(11, 3.9)
    panels = figure.subplots(1, len(SIZES), sharey=True)
    complete, winner = ranking(records), _winner(records, winner_architecture)
    others = [one for one in records if one.state in ("PRUNED", "FAIL")]
    for axes, (name, label) in zip(panels, SIZES.items(), strict=True):
        for varies, look in ((False, EQUAL), (True, VARIED)):
            some = [one for one in complete if _varies(one, name) is varies]
            if some:
                axes.scatter([_size(one, name) for one in some], [one.val_loss for one in some], s=34, **look)
        if winner is not None:
            axes.scatter(
                _size(winner, name), winner.val_loss, s=170, marker="*", color=ORANGE, zorder=3, label="winner"
            )
        without = [_size(one, name) for one in others]
        foot = axes.get_xaxis_transform()
        axes.plot(
            without, [0.025] * len(without), "|", color=GREY, markersize=10, transform=foot, label="not completed"
        )
        axes.set_xlabel(label)
        axes.margins(0.1, 0.12)
        _size_ticks(axes, sorted({*(_size(one, name) for one in complete), *without}))
        grid(axes)
    panels[0].set_ylabel(TRIAL_LOSS)
    figure.suptitle("Which sizes do well", x=0.05, ha="left", fontsize=12)
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, loc="outside upper right", ncols=len(shown), frameon=False, fontsize=9)
    return save(figure, path)


def plot_agreement(found: Sequence[Agreement], path: Path) -> Path:
    """Kendall's tau of early and late rankings, in the given order, each with its interval and number of pairs.

    A tau of too few pairs for an interval is pale and hatched.
    """
    figure = blank(max(7.5, 1.75 * len(found)), 3.2)  # wide enough for the names
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.8)
    for tells, look in ((True, TELLS), (False, TOO_FEW_TO_TELL)):
        places = [(place, one.tau) for place, one in enumerate(found) if one.tau is not None]
        places = [(place, tau) for place, tau in places if found[place].has_interval is tells]
        if places:
            axes.bar([place for place, _ in places], [tau for _, tau in places], width=0.5, **look)
    for place, one in enumerate(found):
        label = str(one).replace(" (", "\n(")
        axes.annotate(label, (place, max(one.tau or 0, 0)), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(found)), [one.what.replace(", with", "\nwith") for one in found], fontsize=8)
    axes.set(
        ylim=(-1.05, 1.45),
        ylabel="Kendall's tau",
        title="Do early orders of losses agree with late ones? (1: the same, 0: unrelated)",
    )
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    grid(axes)
    legend(axes)
    return save(figure, path)


def blank(width: float, height: float) -> Figure:
    """An empty figure of ``width`` by ``height`` inches. It does not use the global state of pyplot."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.02))
    FigureCanvasAgg(figure)
    return figure


def grid(axes: Axes) -> None:
    """Draw faint grid lines, and remove the frame at the top and right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes) -> None:
    """Draw a legend with one entry for each label, even if several curves share it."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if entries:
        axes.legend(entries.values(), entries.keys(), fontsize=8.5, frameon=True, framealpha=0.85, edgecolor="none")


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path`` as PNG and return the path."""
    figure.savefig(path, dpi=DPI)
    return path


def _winner(records: Sequence[TrialRecord], architecture: Architecture | None) -> TrialRecord | None:
    """The trial of ``architecture``; without one, the best trial."""
    if architecture is None:
        return best(records)
    return next((one for one in ranking(records) if one.architecture == architecture), None)


def _curve(axes: Axes, points: Sequence[tuple[int, float]], record: TrialRecord, is_winner: bool) -> None:
    if not points:
        return
    complete = record.state == "COMPLETE"
    label = (
        f"winner: trial {record.number}, {record.architecture.key}" if is_winner else "complete" if complete else None
    )
    axes.plot(
        *zip(*points, strict=True),
        color=ORANGE if is_winner else BLUE if complete else GREY,
        alpha=1.0 if is_winner else 0.6 if complete else 0.5,
        linewidth=2.4 if is_winner else 1.2,
        marker="." if complete else None,
        label=label,
    )
    if record.state in ("PRUNED", "FAIL"):
        words = {"PRUNED": "stopped early", "FAIL": "failed"}[record.state]
        mark = {"PRUNED": "x", "FAIL": "X"}[record.state]
        axes.plot(*points[-1], mark, color="#555555", markersize=6, linestyle="", label=words)


def _at_rungs(axes: Axes, records: Sequence[TrialRecord]) -> None:
    """Scale tokens logarithmically, because rungs grow by a factor, and put a tick at every rung."""
    rungs = sorted({tokens for record in records for tokens, _ in record.curve if tokens > 0})
    if rungs:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(rungs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def _shares(axes: Axes, shares: Array) -> None:
    axes.plot(range(1, len(shares) + 1), 100 * shares.cumsum(), color=BLUE)
    axes.set(xlabel="hidden size", ylabel="% of the square kept", title="Residual stream: share kept by each width")
    axes.set_ylim(0, 102)
    grid(axes)


def _heads_map(figure: Figure, axes: Axes, heads: Array) -> None:
    """The output error of each layer after each removal, as a share of its error without any head."""
    image = axes.imshow(
        heads / heads.max(axis=1, keepdims=True), aspect="auto", cmap="viridis", interpolation="nearest"
    )
    axes.set(xlabel="head", ylabel="layer", title="Heads: output error after each removal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(12, integer=True))
    figure.colorbar(image, ax=axes, label="share of the error without heads")


def _neurons(axes: Axes, mlp: Array) -> None:
    """The output error of each layer after removing a share of its neurons, which is a quantile of their scores."""
    layers = range(len(mlp))
    levels = np.quantile(mlp, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
    axes.fill_between(layers, levels[0], levels[4], color=BLUE, alpha=0.15, linewidth=0, label="5 % to 95 % removed")
    axes.fill_between(layers, levels[1], levels[3], color=BLUE, alpha=0.35, linewidth=0, label="25 % to 75 % removed")
    axes.plot(layers, levels[2], color=BLUE, marker=".", label="half removed")
    title = "MLP neurons: output error after removing a share"
    axes.set(xlabel="layer", ylabel="mean square error", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_ylim(bottom=0)
    legend(axes)


def _screened_points(axes: Axes, screened: Sequence[tuple[int, float]], complete: Sequence[TrialRecord]) -> None:
    """Draw what is known before training, and end the axis at its median or above all trials."""
    label = f"before training ({len(screened)} architectures)"
    points = sorted(screened)
    sizes, before = [size for size, _ in points], [loss for _, loss in points]
    axes.scatter(sizes, before, s=14, facecolor="none", edgecolor=GREY, label=label, zorder=1)
    best = np.minimum.accumulate(before)
    axes.step(sizes, best, where="post", color=GREY, linestyle="--", linewidth=1, label="front before training")
    losses = [one.val_loss for one in complete if one.val_loss is not None]
    low, high = min([*losses, *before]), max([*losses, float(np.median(before))])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.05 * (high - low))


def _points(records: Sequence[TrialRecord]) -> tuple[list[int], list[float]]:
    return [one.parameters for one in records], [one.val_loss for one in records if one.val_loss is not None]


def _size(record: TrialRecord, name: str) -> float:
    return float(np.mean(getattr(record.architecture, name)))


def _varies(record: TrialRecord, name: str) -> bool:
    return len(set(np.ravel(getattr(record.architecture, name)))) > 1


def _size_ticks(axes: Axes, sizes: Sequence[float]) -> None:
    if len(sizes) <= FEW_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(sizes))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(FEW_TICKS - 1, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
