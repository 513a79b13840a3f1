"""From the trials in the database of a study to records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from nas.study.records import LATENCY, MEMORY, SCREEN_LOSS, STORED, TrialRecord
from nas.study.sampler import INTERRUPTED
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from search_spaces.stored_size import memory_bytes, stored_bytes
from trials.export.loads_in import loads_in

# Quantities that are measured before the first trial: losses before retraining, and milliseconds per generated token.
# Architectures that differ only in the layers that they name, or in their zeros, take the same time. Their latency has
# the key of the `Architecture.timed`.
SCREENED, TIMED = "screened", "timed"

# User attributes of trials. RETRY is True when a trial failed by its surroundings. AFTER is the number of the failed
# trial that a trial repeats. ARCHITECTURE is the JSON form of its architecture. ELAPSED is how many seconds it took, if
# the wall clock jumped meanwhile.
RETRY, AFTER, ARCHITECTURE, ELAPSED = "retry", "after", "architecture", "elapsed"


def measured_in(attributes: Mapping[str, Any], quantity: str) -> dict[str, float | None]:
    """The values of a ``quantity`` in the user attributes of a study, by the architecture's key; None if it failed."""
    start = f"{quantity}/"  # as earlier versions kept each value
    found = {name.removeprefix(start): attributes[name] for name in attributes if name.startswith(start)}
    for name in attributes:
        if name.startswith(f"{quantity} "):
            found |= attributes[name]
    return found


def queued_again(trials: Iterable[FrozenTrial]) -> set[int]:
    """The numbers of trials that failed by their surroundings and were queued again under another number."""
    return {one.user_attrs[AFTER] for one in trials if AFTER in one.user_attrs}


def shown(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The ``trials`` without queued ones and without those that were interrupted and queued again."""
    again = queued_again(trials)
    return [
        one
        for one in trials
        if one.state is not TrialState.WAITING
        and (one.user_attrs.get("reason") != INTERRUPTED or (RETRY in one.user_attrs and one.number not in again))
    ]


def record_of(
    trial: FrozenTrial,
    shape: ModelShape,
    architecture: Architecture,
    losses: Mapping[str, float | None],
    latencies: Mapping[str, float | None],
) -> TrialRecord:
    """The record of ``trial``. ``losses`` and ``latencies`` are what was measured before the first trial."""
    complete = trial.state is TrialState.COMPLETE
    known = _known(shape, architecture, losses, latencies)
    return TrialRecord(
        number=trial.number,
        architecture=architecture,
        parameters=shape.parameters(architecture),
        stock=shape.is_stock(architecture),
        loads_in=str(loads_in(shape, architecture)),
        state=trial.state.name,
        reason=trial.user_attrs.get("failure", trial.user_attrs.get("reason")),
        val_loss=trial.value if complete else None,
        curve=tuple(sorted(trial.intermediate_values.items())),
        metrics={**_costs(architecture, shape), **known, **trial.user_attrs.get("metrics", {})},
        origin=trial.user_attrs.get("origin", "sampler"),
        started=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended=_ended(trial),
    )


def _ended(trial: FrozenTrial) -> float | None:
    """When the trial ended, in seconds since the epoch by the clock as it was when the trial started."""
    if trial.datetime_complete is None:
        return None
    elapsed = trial.user_attrs.get(ELAPSED)
    if elapsed is None or trial.datetime_start is None:
        return trial.datetime_complete.timestamp()
    return trial.datetime_start.timestamp() + float(elapsed)


def _known(
    shape: ModelShape,
    architecture: Architecture,
    losses: Mapping[str, float | None],
    latencies: Mapping[str, float | None],
) -> dict[str, float]:
    """The metrics of ``architecture`` that do not depend on its trial."""
    found = {SCREEN_LOSS: losses.get(architecture.key), LATENCY: latencies.get(architecture.timed.key)}
    found |= {MEMORY: float(memory_bytes(shape, architecture)), STORED: float(stored_bytes(shape, architecture))}
    return {metric: value for metric, value in found.items() if value is not None}


def _costs(architecture: Architecture, shape: ModelShape) -> dict[str, float]:
    """The inference costs: forward FLOPs per token at full context, and bfloat16 key/value cache bytes per token."""
    flops = shape.flops_per_token(architecture, shape.positions)
    return {"flops_per_token": float(flops), "kv_cache_bytes_per_token": float(shape.kv_cache_bytes(architecture))}
