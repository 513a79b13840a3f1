"""What tracking is told: frozen values with a JSON form, complete enough to be delivered by another process.

``study`` names one study for good: all events of one study, in whatever run of the command, go to one parent run.
Times are seconds since the epoch and part of the event, so that a second delivery writes the very same points.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nas.study.records import FinalRecord, TrialRecord


@dataclass(frozen=True)
class SearchStarted:
    """A run of the command begins, the first of its study or a later one.

    ``settings`` become parameters of the parent run, ``tags`` its tags; ``name`` is the run's name, else ``study``.
    """

    study: str
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    name: str = ""
    started: float = field(default_factory=time.time)


@dataclass(frozen=True)
class TrialChanged:
    """All that is known of one trial now. It replaces earlier snapshots of the trial."""

    study: str
    record: TrialRecord


@dataclass(frozen=True)
class FinalChanged:
    """All that is known of one final now. It replaces earlier snapshots of the final."""

    study: str
    record: FinalRecord


@dataclass(frozen=True)
class Artifacts:
    """Files or folders for the parent run, as they are now, under ``artifact_path`` ("" is the top)."""

    study: str
    paths: tuple[str, ...]
    artifact_path: str = ""


@dataclass(frozen=True)
class SearchFinished:
    """A run of the command ended; ``status`` is MLflow's word: FINISHED, KILLED (interrupted) or FAILED.

    ``metrics`` and ``tags`` are of the parent run.
    """

    study: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    status: str = "FINISHED"
    ended: float = field(default_factory=time.time)


@dataclass(frozen=True)
class ModelExported:
    """The winner's checkpoint in ``directory``: a version of the registered model ``name``, alias ``best``.

    The same weights and configuration make one version, however often they are exported.
    """

    study: str
    name: str
    directory: str
    description: str = ""


Event = SearchStarted | TrialChanged | FinalChanged | Artifacts | SearchFinished | ModelExported
KINDS: dict[str, type[Event]] = {
    one.__name__: one for one in (SearchStarted, TrialChanged, FinalChanged, Artifacts, SearchFinished, ModelExported)
}


def to_dict(event: Event) -> dict[str, Any]:
    """JSON form."""
    value = asdict(event)
    if isinstance(event, (TrialChanged, FinalChanged)):
        value["record"] = event.record.to_dict()
    return {"event": type(event).__name__, "value": value}


def from_dict(value: Mapping[str, Any]) -> Event:
    """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError when ``value`` is no event."""
    fields = dict(value["value"])
    kind = KINDS[value["event"]]
    if kind is TrialChanged:
        fields["record"] = TrialRecord.from_dict(fields["record"])
    if kind is FinalChanged:
        fields["record"] = FinalRecord.from_dict(fields["record"])
    if kind is Artifacts:
        fields["paths"] = tuple(fields["paths"])
    return kind(**fields)
