"""The contents of an MLflow run: names, metric points, parameters and tags, as pure functions of records."""

from __future__ import annotations

from typing import Any

from nas.choosing.selection import perplexity
from nas.study.records import FinalRecord, TrialRecord

# The MLflow status of an Optuna state. A trial that was stopped early has done what it was for; its tag says PRUNED.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
# Metrics that another metric or the curve of ``val_loss`` says already.
REPEATED = ("val_loss", "trial_loss", "zero_shot_loss", "tokens", "resumed_from")


def run_name(record: TrialRecord | FinalRecord) -> str:
    """The name of a run: ``trial-003 d8-h208-a6-m768`` or ``final d8-h208-a6-m768``."""
    if isinstance(record, FinalRecord):
        return f"final {record.architecture.key}"
    return f"trial-{record.number:03d} {record.architecture.key}"


def points(record: TrialRecord | FinalRecord) -> list[tuple[str, float, int, int]]:
    """The metric points of a trial or final: (key, value, timestamp in ms, step).

    Only ``val_loss`` has a curve: a point at every rung, with the tokens distilled as the step. A final starts with the
    points of its trial. Everything else is one figure of the whole run, without a step, so that MLflow draws a bar and
    not a line. ``tokens`` are those distilled so far.

    The time of a rung is not recorded. Instead, the points of the rungs get the start time plus 0, 1, 2 ... ms. These
    timestamps are the same in every snapshot, so MLflow stores a repeated point once.
    """
    start = milliseconds(record.started) or 0
    rungs = [("val_loss", loss, start + place, tokens) for place, (tokens, loss) in enumerate(record.curve)]
    known = {"parameters": float(record.parameters)}
    if record.state in STATUS:
        known.update((key, value) for key, value in record.metrics.items() if key not in REPEATED)
        known["tokens"] = float(record.curve[-1][0] if record.curve else 0)
    if record.val_loss is not None:
        known["perplexity"] = perplexity(record.val_loss)
    return rungs + [(key, value, start, 0) for key, value in known.items()]


def sizes(record: TrialRecord | FinalRecord) -> dict[str, Any]:
    """The architecture as parameters of a run. What is done to its weights is named as in its key."""
    values, done = record.architecture.plain.to_dict(), record.architecture.compression
    return values | {name: getattr(done, name).key for name in done.to_dict()}


def facts(record: TrialRecord | FinalRecord) -> dict[str, str]:
    """The tags of a run. The tag ``stage`` is "trial" or "final".

    A trial has the tag ``state`` only after its end, because MLflow itself shows which runs are running. A final always
    has it: a final can be interrupted and continue in the same run, and then the new state must replace the old one.
    """
    tags = {"architecture": record.architecture.key, "stock": str(record.stock).lower(), "loads_in": record.loads_in}
    if isinstance(record, FinalRecord):
        return {**tags, "stage": "final", "state": record.state, "reason": record.reason or ""}
    tags |= {"origin": record.origin, "stage": "trial"}
    if record.state in STATUS:
        tags["state"] = record.state
    if record.reason:
        tags["reason"] = tags["mlflow.note.content"] = record.reason
    return tags


def milliseconds(seconds: float | None) -> int | None:
    """MLflow's unit of time, milliseconds since the epoch, from ``seconds`` since the epoch."""
    return None if seconds is None else round(seconds * 1000)
