"""Snapshots of a trial and of a final. Selection, reports and tracking work on these values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from search_spaces.architecture import Architecture
from trials.text.validation import OF_TEXT

# Metrics that depend on the architecture alone and are known before its trial: the loss in the screening in nats per
# token (`trials.screen.screen`), the milliseconds per generated token (`trials.screen.latency`), the bytes of weights
# and cache in memory, and the bytes of the exported weights (`search_spaces.stored_size`).
SCREEN_LOSS, LATENCY, MEMORY, STORED = "screen_loss", "latency_ms", "memory_bytes", "stored_bytes"


@dataclass(frozen=True)
class TrialRecord:
    """A snapshot of one trial.

    ``state`` is Optuna's state: RUNNING, COMPLETE, PRUNED (stopped early by the scheduler) or FAIL (see ``reason``).
    ``curve`` holds (tokens distilled, validation loss in nats per token) for every rung reached. The point at 0 tokens
    is the student before retraining. ``val_loss`` is the final loss of a COMPLETE trial and None otherwise.
    ``stock`` means that the model loads with a plain ``from_pretrained``. ``origin`` names the idea or the sampler that
    proposed the trial. ``loads_in`` names the programs that load it, as tables show them
    (`trials.export.loads_in.LoadsIn`). ``started`` and ``ended`` are seconds since the epoch.
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
    loads_in: str = ""
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
    """A snapshot of one architecture in the final stage, which trains a few students on more tokens.

    ``roles`` say why the architecture is in the final stage (see `nas.choosing.finalists`). ``state`` is WAITING,
    RUNNING, COMPLETE or FAIL (see ``reason``). ``tokens`` counts the trial and the final together. ``curve`` starts
    with the points of the trial. The ``metrics`` of a COMPLETE final include ``trial_loss``, the loss at the end of the
    trial. ``windows`` is the digest of the losses per window. The losses themselves are stored in the final's folder.
    ``loads_in`` is as in `TrialRecord`.
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
    loads_in: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def name(self) -> str:
        """The architecture's key and the tokens. The final's folder and its entry in the study have this name."""
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
    """The loss on each validation text, by name; empty for a single text. A stopped trial has its last losses."""
    return {name[len(OF_TEXT) :]: loss for name, loss in record.metrics.items() if name.startswith(OF_TEXT)}
