"""The events of tracking: frozen values with a JSON form. Another process can deliver them.

``study`` is the unique id of a study. All events of a study go to one parent run, also those of later runs of the
command. Times are in seconds since the epoch. They are part of the event, so a repeated delivery writes equal points.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nas.study.records import FinalRecord, TrialRecord


@dataclass(frozen=True)
class SearchStarted:
    """A run of the command starts: the first one of its study, or a later one.

    ``settings`` become parameters of the parent run, and ``tags`` its tags. ``name`` is the name of the parent run; the
    default is ``study``. ``description`` is Markdown for the page of the parent run. ``corpus`` is the text that all
    trials read, see `nas.tracking.mlflow_view.dataset`; empty for none.
    """

    study: str
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    name: str = ""
    started: float = field(default_factory=time.time)
    description: str = ""
    corpus: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialChanged:
    """A snapshot of one trial. It replaces earlier snapshots of the trial."""

    study: str
    record: TrialRecord


@dataclass(frozen=True)
class FinalChanged:
    """A snapshot of one final. It replaces earlier snapshots of the final."""

    study: str
    record: FinalRecord


@dataclass(frozen=True)
class RunJudged:
    """The place of one trial or final in the result: ``metrics`` and ``tags`` for its run.

    ``place`` is the number of the trial, or "final " and the name of the final. A run that ``wins`` is marked in its
    name. ``ended`` is when the trial or final ended.
    """

    study: str
    place: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    wins: bool
    ended: float


@dataclass(frozen=True)
class Artifacts:
    """Files or folders for the parent run, in their present state, under ``artifact_path`` ("" is the top)."""

    study: str
    paths: tuple[str, ...]
    artifact_path: str = ""


@dataclass(frozen=True)
class SearchFinished:
    """A run of the command ended. ``status`` is MLflow's: FINISHED, KILLED (interrupted) or FAILED.

    ``metrics``, ``tags`` and ``description`` go to the parent run. An empty description leaves the one that is there.
    """

    study: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    status: str = "FINISHED"
    ended: float = field(default_factory=time.time)
    description: str = ""


@dataclass(frozen=True)
class ModelExported:
    """The winner's checkpoint in ``directory``. It becomes a version of the registered model ``name``, alias ``best``.

    Equal weights and configurations make one version, even if they are exported again. ``description`` is Markdown.
    """

    study: str
    name: str
    directory: str
    description: str = ""


Event = SearchStarted | TrialChanged | FinalChanged | RunJudged | Artifacts | SearchFinished | ModelExported
KINDS: dict[str, type[Event]] = {
    one.__name__: one
    for one in (SearchStarted, TrialChanged, FinalChanged, RunJudged, Artifacts, SearchFinished, ModelExported)
}


def to_dict(event: Event) -> dict[str, Any]:
    """JSON form."""
    value = asdict(event)
    if isinstance(event, (TrialChanged, FinalChanged)):
        value["record"] = event.record.to_dict()
    return {"event": type(event).__name__, "value": value}


def from_dict(value: Mapping[str, Any]) -> Event:
    """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError when ``value`` is not an event."""
    fields = dict(value["value"])
    kind = KINDS[value["event"]]
    if kind is TrialChanged:
        fields["record"] = TrialRecord.from_dict(fields["record"])
    if kind is FinalChanged:
        fields["record"] = FinalRecord.from_dict(fields["record"])
    if kind is Artifacts:
        fields["paths"] = tuple(fields["paths"])
    return kind(**fields)
