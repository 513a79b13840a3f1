"""The objectives of a search, all minimized, and Pareto dominance. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nas.study.records import LATENCY, MEMORY, STORED, TrialRecord
from search_spaces.errors import InputError

LOSS, PARAMETERS, STORED_BYTES, MEMORY_BYTES, LATENCY_MS = "loss", "params", "bytes", "memory", "latency"
OBJECTIVES = (LOSS, PARAMETERS, STORED_BYTES, MEMORY_BYTES, LATENCY_MS)

Point = tuple[float, ...]
"""The values of the objectives, the loss first. `costs` returns a point without the loss."""


def parse_objectives(text: str) -> tuple[str, ...]:
    """The comma-separated objectives in ``text``, the loss first. Raises InputError for unknown or repeated names."""
    names = [one.strip() for one in text.split(",")]
    known = f"known are {', '.join(OBJECTIVES)}"
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(f"--objectives {name!r}: unknown; {known}")
        if names.count(name) > 1:
            raise InputError(f"--objectives {text!r}: {name!r} is given twice; give it once")
    if LOSS not in names:
        raise InputError(f"--objectives {text!r}: {LOSS!r} is missing; add it; {known}")
    return tuple(sorted(names, key=OBJECTIVES.index))


def dominated_by(point: Point, others: Iterable[Point]) -> int:
    """How many of ``others`` dominate ``point``: no worse in every objective, and better in at least one.

    With the loss as the only objective, this is the number of lower losses.
    """
    return sum(
        other != point and all(theirs <= own for theirs, own in zip(other, point, strict=True)) for other in others
    )


def places(points: Sequence[Point]) -> list[int]:
    """`dominated_by` of each of ``points`` among all of them, without a Python loop over pairs."""
    if not points:
        return []
    array = np.array(points, dtype=float)
    if array.shape[1] == 1:
        losses = array[:, 0]
        return [int(one) for one in np.searchsorted(np.sort(losses), losses)]
    return [int(((array <= one).all(axis=1) & (array < one).any(axis=1)).sum()) for one in array]


def costs(objectives: Sequence[str], values: Mapping[str, float]) -> Point:
    """The ``values`` of all objectives but the loss, in the order of ``objectives``."""
    return tuple(values[name] for name in objectives if name != LOSS)


def point_of(record: TrialRecord, objectives: Sequence[str]) -> Point:
    """The objectives of a COMPLETE trial. A value that was not measured counts as infinite."""
    assert record.val_loss is not None, "only a COMPLETE trial has a point"
    measured = {STORED_BYTES: STORED, MEMORY_BYTES: MEMORY, LATENCY_MS: LATENCY}
    values = {name: record.metrics.get(metric, float("inf")) for name, metric in measured.items()}
    return record.val_loss, *costs(objectives, {PARAMETERS: float(record.parameters), **values})
