"""What an MLflow run shows of a trial and of a search: names, points, parameters and tags, as pure functions."""

from __future__ import annotations

from typing import Any

from nas.choosing.selection import perplexity
from nas.study.records import FinalRecord, TrialRecord
from nas.tracking.messages import SearchStarted

STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}  # MLflow's words for Optuna's


def run_name(record: TrialRecord | FinalRecord) -> str:
    """The name of a run, ``trial-003 d8-h208-a6-m768`` or ``final d8-h208-a6-m768``."""
    if isinstance(record, FinalRecord):
        return f"final {record.architecture.key}"
    return f"trial-{record.number:03d} {record.architecture.key}"


def points(record: TrialRecord | FinalRecord) -> list[tuple[str, float, int, int]]:
    """Metric points of a trial or a final: (key, value, timestamp in ms, step), the step being tokens distilled.

    The loss of every rung is ``val_loss``, a final's beginning with its trial's; what is known at the end,
    ``final_val_loss`` of what is COMPLETE included, stands at the last rung. No clock was read at the rungs, so their
    timestamps count milliseconds from the start: the same in every snapshot, which keeps a repeated point from being
    a second one.
    """
    start = milliseconds(record.started) or 0
    last = record.curve[-1][0] if record.curve else 0
    rungs = [("val_loss", loss, start + place, tokens) for place, (tokens, loss) in enumerate(record.curve)]
    known = {"parameters": float(record.parameters)}
    if record.state in STATUS:
        known.update((key, value) for key, value in record.metrics.items() if key != "val_loss")
    if record.val_loss is not None:
        known.update(final_val_loss=record.val_loss, perplexity=perplexity(record.val_loss))
    return rungs + [(key, value, start, last if key != "parameters" else 0) for key, value in known.items()]


def sizes(record: TrialRecord | FinalRecord) -> dict[str, Any]:
    """The architecture as parameters of a run."""
    return record.architecture.to_dict()


def facts(record: TrialRecord | FinalRecord) -> dict[str, str]:
    """Tags of a run. ``stage`` tells trials from finals. A trial's state is a tag only when it is final: MLflow shows
    what runs by itself. That of a final, which may be interrupted and go on in the same run, always is.
    """
    tags = {"architecture": record.architecture.key, "stock": str(record.stock).lower()}
    if isinstance(record, FinalRecord):
        roles = ", ".join(record.roles)
        return {**tags, "stage": "final", "roles": roles, "state": record.state, "reason": record.reason or ""}
    tags |= {"origin": record.origin, "stage": "trial"}
    if record.state in STATUS:
        tags["state"] = record.state
    if record.reason:
        tags["reason"] = tags["mlflow.note.content"] = record.reason
    return tags


def note(event: SearchStarted) -> str:
    """The description of the parent run, in Markdown."""
    shown = {key: value for key, value in event.tags.items() if not key.startswith("mlflow.")}
    return "\n".join(f"- **{key}**: {value}" for key, value in shown.items())


def milliseconds(seconds: float | None) -> int | None:
    """MLflow's clock: milliseconds since the epoch."""
    return None if seconds is None else round(seconds * 1000)
