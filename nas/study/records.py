"""What is known of one trial or final: the values that selection, report and tracking work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from search_spaces.architecture import Architecture
from trials.losses.window_losses import OF_TEXT

# Metrics of a trial that are known of its architecture beforehand: its loss in the screening (`trials.screen.screen`),
# milliseconds for a generated token (`trials.screen.latency`), bytes of weights and cache (`ModelShape.memory_bytes`).
SCREEN_LOSS, LATENCY, MEMORY = "screen_loss", "latency_ms", "memory_bytes"


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


@dataclass(frozen=True)
class FinalRecord:
    """A snapshot of one architecture in the final stage, where some are trained on more tokens than in the trials.

    ``roles`` say why it is there (see `nas.stages.finish`). ``state`` is WAITING, RUNNING, COMPLETE or FAIL (see ``reason``).
    ``tokens`` are those of the trial and of the final together; ``curve`` is as a trial's, and goes on where that
    ended. ``metrics`` hold, at the end, the ``trial_loss`` too. ``windows`` is the digest of the losses window by
    window, which lie in the final's folder.
    """

    architecture: Architecture
    parameters: int
    stock: bool
    tokens: int
    roles: tuple[str, ...]
    state: str = "WAITING"
    reason: str | None = None
    val_loss: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    windows: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def name(self) -> str:
        """Of this architecture on so many tokens; its folder, and its key in the study."""
        return f"{self.architecture.key}-{self.tokens}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "architecture": self.architecture.to_dict(), "metrics": dict(self.metrics)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FinalRecord:
        """The inverse of `to_dict`."""
        curve = tuple((int(tokens), float(loss)) for tokens, loss in value["curve"])
        architecture = Architecture.from_dict(value["architecture"])
        return cls(**{**value, "architecture": architecture, "curve": curve, "roles": tuple(value["roles"])})


def text_losses(record: TrialRecord | FinalRecord) -> dict[str, float]:
    """The loss on each validation text, by its name, where there are several; of a stopped trial the last reading."""
    return {name[len(OF_TEXT) :]: loss for name, loss in record.metrics.items() if name.startswith(OF_TEXT)}
