"""Every architecture that a study knows, with what was measured of it, as frozen values for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas.study.records import LATENCY, FinalRecord, TrialRecord
from nas.study.snapshot import SIZE_NAMES, SIZES, StudySnapshot, sizes_of

LONGEST = 400  # characters of a reason
STATES = {
    "COMPLETE": "complete",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclass(frozen=True)
class Training:
    """A trial or a final as far as it has come.

    ``curve`` are pairs (tokens, validation loss in nats per token). ``loss`` is the last of them, after ``tokens``.
    ``seconds`` is wall time; ``number`` is that of a trial.
    """

    state: str
    curve: tuple[tuple[int, float], ...]
    loss: float | None
    tokens: int
    seconds: float | None
    reason: str
    number: int | None = None
    origin: str = ""

    @property
    def before(self) -> float | None:
        """The loss before any training."""
        return self.curve[0][1] if self.curve and self.curve[0][0] == 0 else None

    @property
    def place(self) -> tuple[int, int, float, int]:
        """Where it stands in a table: complete ones first, then those that came furthest; each group by loss."""
        loss = math.inf if self.loss is None else self.loss
        return int(self.state != STATES["COMPLETE"]), -self.tokens, loss, self.number or 0


@dataclass(frozen=True)
class Model:
    """An architecture with its sizes, its costs and its losses.

    ``heads`` and ``mlp`` are means over layers. ``zeros`` is the share of the layers' weights that are 0, and ``bits``
    are those of a weight. ``flops`` are those of a token in a training sequence, forward. ``screen`` is the loss in the
    screening. ``roles`` are those of a final: "finalist", or the name of a baseline.
    """

    key: str
    depth: int
    hidden: int
    heads: float
    mlp: float
    parameters: int
    stored_bytes: int
    memory_bytes: int
    flops: int
    stock: bool
    zeros: float
    bits: int
    latency_ms: float | None = None
    screen: float | None = None
    trial: Training | None = None
    final: Training | None = None
    roles: tuple[str, ...] = ()


def models_of(found: StudySnapshot) -> list[Model]:
    """All architectures of the study, best known loss first: those with a final, those with a trial, the others."""
    sequence = int(found.attributes["plan"]["recipe"]["sequence_length"])
    trials = {one.architecture.key: one for one in found.records}
    finals = {one.architecture.key: one for one in found.finals}
    built = [*(one.architecture for one in found.records), *(one.architecture for one in found.finals)]
    sizes = {key: value for part in found.parts(SIZES).values() for key, value in part.items()}
    sizes |= {one.key: sizes_of(one, found.shape, sequence) for one in built}
    models = [_model(key, value, found, trials.get(key), finals.get(key)) for key, value in sizes.items()]
    return sorted(models, key=_order)


def known_loss(model: Model) -> float | None:
    """The loss after most training: of the final, else of the trial, else of the screening."""
    found = (model.final.loss if model.final else None, model.trial.loss if model.trial else None, model.screen)
    return next((one for one in found if one is not None), None)


def _order(model: Model) -> tuple[int, float, str]:
    stage = 0 if model.final else 1 if model.trial else 2
    loss = known_loss(model)
    return stage, math.inf if loss is None else loss, model.key


def _model(
    key: str, sizes: Sequence[float], found: StudySnapshot, trial: TrialRecord | None, final: FinalRecord | None
) -> Model:
    named: Mapping[str, float] = dict(zip(SIZE_NAMES, sizes, strict=True))
    latency = trial.metrics.get(LATENCY) if trial else found.timed.get(key)
    return Model(
        key=key,
        depth=int(named["depth"]),
        hidden=int(named["hidden"]),
        heads=round(named["heads"], 2),
        mlp=round(named["mlp"], 2),
        parameters=int(named["parameters"]),
        stored_bytes=int(named["stored_bytes"]),
        memory_bytes=int(named["memory_bytes"]),
        flops=int(named["flops"]),
        stock=bool(named["stock"]),
        zeros=named["zeros"],
        bits=int(named["bits"]),
        latency_ms=latency,
        screen=found.screened.get(key),
        trial=_training(trial, trial.number, trial.origin) if trial else None,
        final=_training(final) if final else None,
        roles=final.roles if final else (),
    )


def _training(record: TrialRecord | FinalRecord, number: int | None = None, origin: str = "") -> Training:
    curve = tuple((tokens, loss) for tokens, loss in record.curve if math.isfinite(loss))
    tokens, loss = curve[-1] if curve else (0, None)
    return Training(
        state=STATES.get(record.state, record.state.lower()),
        curve=curve,
        loss=loss if record.val_loss is None else record.val_loss,
        tokens=tokens,
        seconds=record.ended - record.started if record.started and record.ended else None,
        reason=(record.reason or "")[:LONGEST],
        number=number,
        origin=origin,
    )
