"""What a search weighs against the loss, and who is beaten by whom. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nas.study.records import LATENCY, MEMORY, TrialRecord
from search_spaces.errors import InputError

LOSS, PARAMETERS, MEMORY_BYTES, LATENCY_MS = "loss", "params", "memory", "latency"
OBJECTIVES = (LOSS, PARAMETERS, MEMORY_BYTES, LATENCY_MS)

Point = tuple[float, ...]


def parse_objectives(text: str) -> tuple[str, ...]:
    """The objectives in ``text``, comma-separated, the loss first. Raises InputError naming the known ones."""
    names = [one.strip() for one in text.split(",")]
    known = f"known are {', '.join(OBJECTIVES)}"
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(f"--objectives {name!r}: unknown; {known}")
        if names.count(name) > 1:
            raise InputError(f"--objectives {text!r}: {name!r} is there twice")
    if LOSS not in names:
        raise InputError(f"--objectives {text!r}: {LOSS!r} must be among them; {known}")
    return tuple(sorted(names, key=OBJECTIVES.index))


def dominated_by(point: Point, others: Iterable[Point]) -> int:
    """How many of ``others`` are no worse than ``point`` in every objective, and better in one; less is better.

    Of the loss alone: how many have a lower one.
    """
    return sum(
        other != point and all(theirs <= own for theirs, own in zip(other, point, strict=True)) for other in others
    )


def costs(objectives: Sequence[str], values: Mapping[str, float]) -> Point:
    """What stands beside the loss, in the order of ``objectives``."""
    return tuple(values[name] for name in objectives if name != LOSS)


def point_of(record: TrialRecord, objectives: Sequence[str]) -> Point:
    """Of a COMPLETE trial; what was not measured counts as the worst."""
    assert record.val_loss is not None, "only what is COMPLETE has a place"
    measured = {MEMORY_BYTES: MEMORY, LATENCY_MS: LATENCY}
    values = {name: record.metrics.get(metric, float("inf")) for name, metric in measured.items()}
    return record.val_loss, *costs(objectives, {PARAMETERS: float(record.parameters), **values})
