"""What is known of one trial, as read from the study: the value that selection, report and tracking work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from search_spaces.architecture import Architecture


@dataclass(frozen=True)
class TrialRecord:
    """A snapshot of one trial.

    ``state`` is Optuna's word: RUNNING, COMPLETE, PRUNED (stopped early by the scheduler) or FAIL (see ``reason``).
    ``curve`` holds (tokens distilled, validation loss in nats per token) for every rung reached; tokens 0 is the
    student before any retraining. ``val_loss`` is the final loss of a COMPLETE trial and None otherwise.
    ``started`` and ``ended`` are seconds since the epoch.
    """

    number: int
    architecture: Architecture
    parameters: int
    stock: bool
    state: str
    reason: str | None = None
    val_loss: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    origin: str = "sampler"
    started: float | None = None
    ended: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "architecture": self.architecture.to_dict(), "metrics": dict(self.metrics)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrialRecord:
        """The inverse of `to_dict`."""
        curve = tuple((int(tokens), float(loss)) for tokens, loss in value["curve"])
        return cls(**{**value, "architecture": Architecture.from_dict(value["architecture"]), "curve": curve})
