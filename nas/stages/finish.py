"""The final stage: who goes on after the trials, on more tokens, and what came of them.

The study remembers every final that ended, so that the same command trains none of them twice. Trials and finals are
different values all the way: a loss after more tokens never enters a ranking of trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nas.choosing.selection import FINALIST, STOCK, best_stock, weighed
from nas.planning.errors import Failure
from nas.planning.plan import Plan
from nas.running.task_lists import Heard, run_finals
from nas.running.tune_run import architecture_spec
from nas.running.workers import Workers
from nas.study.records import FinalRecord, TrialRecord
from nas.study.study import SearchStudy
from search_spaces.architecture import Architecture
from trials.distill.checkpoint import Rung
from trials.distill.results import STUDENT
from trials.final import VERSION, FinalSpec, read_windows
from trials.losses.window_losses import OF_TEXT, WindowLosses

MEASURED = ("trial_loss", "kl", "seconds", "peak_memory_bytes", "resumed_from")

Changed = Callable[[list[FinalRecord], FinalRecord], None]


def entrants(plan: Plan, records: Sequence[TrialRecord]) -> list[FinalRecord]:
    """The finalists, best first, the best stock candidate and the baselines; each architecture once, with its roles.

    Best is what `nas.choosing.selection.weighed` puts first.
    """
    ranked, stock = weighed(records, plan.objectives), best_stock(records)
    roles: dict[Architecture, list[str]] = {one.architecture: [FINALIST] for one in ranked[: plan.settings.finalists]}
    if stock is not None:
        roles.setdefault(stock.architecture, [STOCK])
    for name, architecture in plan.baselines.items():
        roles.setdefault(architecture, []).append(name)
    curves = {one.architecture: one.curve for one in ranked}
    shape, tokens = plan.target.shape, plan.recipe.tokens + plan.final_tokens
    return [
        FinalRecord(one, shape.parameters(one), shape.is_stock(one), tokens, tuple(names), curve=curves.get(one, ()))
        for one, names in roles.items()
    ]


def open_stage(plan: Plan, study: SearchStudy, records: Sequence[TrialRecord]) -> list[FinalRecord]:
    """All finals, those that the study remembers as they ended."""
    return [recalled(plan, study, one) for one in entrants(plan, records)]


def run_stage(
    plan: Plan, study: SearchStudy, finals: Sequence[FinalRecord], workers: Workers, changed: Changed
) -> list[FinalRecord]:
    """Train those of ``finals`` that wait; returns all of them as they are then.

    ``changed`` is called with all finals and the one that changed. Raises InputError when a worker does.
    """
    stage = {one.name: one for one in finals}

    def hear(name: str, heard: Heard) -> None:
        before, stage[name] = stage[name], after(stage[name], heard)
        lasting = not (isinstance(heard, Failure) and heard.retry)  # what a retry may mend is open to the next run
        if (heard is None or stage[name].ended) and lasting:
            study.remember(_label(stage[name]), stage[name].to_dict())
        if stage[name] != before:
            changed(list(stage.values()), stage[name])

    waiting = [one for one in stage.values() if one.state == "WAITING"]
    longest_first = sorted(waiting, key=lambda one: one.curve[-1][0] if one.curve else 0)  # all end about together
    run_finals({one.name: final_spec(plan, one) for one in longest_first}, workers, hear)
    return list(stage.values())


def recalled(plan: Plan, study: SearchStudy, record: FinalRecord) -> FinalRecord:
    """``record`` as the study remembers it: ended, begun at some time, or not at all; anew when its files are gone."""
    known = study.recall(_label(record))
    if known is None:
        return record
    found = replace(FinalRecord.from_dict(known), roles=record.roles)
    if found.ended is None or (found.state == "COMPLETE" and windows_of(plan, found) is None):
        return replace(record, started=found.started)
    return found


def after(record: FinalRecord, heard: Heard) -> FinalRecord:
    """``record`` when ``heard`` has been heard of it."""
    if heard is None:
        return replace(record, state="RUNNING", started=record.started or time.time())
    if isinstance(heard, Rung):
        known = bool(record.curve) and heard.tokens <= record.curve[-1][0]  # the trial's readings, or a retry's
        reading = (heard.tokens, heard.metrics["val_loss"])
        return record if known else replace(record, curve=(*record.curve, reading))
    if isinstance(heard, Failure):
        return replace(record, state="FAIL", reason=heard.reason, ended=time.time())
    measured = {name: float(value) for name, value in heard.to_dict().items() if name in MEASURED}
    texts = {f"{OF_TEXT}{name}": loss for name, loss in heard.losses.items()}
    return replace(
        record,
        state="COMPLETE",
        val_loss=heard.val_loss,
        curve=heard.curve,
        metrics={**measured, **texts},
        windows=heard.windows_digest,
        ended=time.time(),
    )


def final_spec(plan: Plan, record: FinalRecord) -> FinalSpec:
    """The specification of one final; its folder is named after architecture and tokens, so that a retry finds it."""
    return FinalSpec(architecture_spec(plan, record.architecture), plan.final_tokens, str(_folder(plan, record)))


def student_of(plan: Plan, record: FinalRecord) -> Path:
    """Where the student of a final lies, for `trials.trial.load_weights`."""
    return _folder(plan, record) / STUDENT


def windows_of(plan: Plan, record: FinalRecord) -> WindowLosses | None:
    """The losses of a COMPLETE final window by window; None when its files are gone."""
    return read_windows(_folder(plan, record), record.windows)


def _folder(plan: Plan, record: FinalRecord) -> Path:
    return plan.folder / "finals" / record.name


def _label(record: FinalRecord) -> str:
    return f"final {VERSION} {record.name}"
