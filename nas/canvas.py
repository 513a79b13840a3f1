"""What all pictures have in common: size, grid, legend, resolution."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

DPI = 150


def blank(width: float, height: float) -> Figure:
    """An empty picture, in inches, with air between its panels. It never touches pyplot's global state."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.02))
    FigureCanvasAgg(figure)
    return figure


def grid(axes: Axes) -> None:
    """Faint lines, and no frame on the sides without a scale."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes) -> None:
    """One entry for each label, however many curves share it."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if entries:
        axes.legend(entries.values(), entries.keys(), fontsize=8.5, frameon=True, framealpha=0.85, edgecolor="none")


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG and return its path."""
    figure.savefig(path, dpi=DPI)
    return path
