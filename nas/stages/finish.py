"""Stage 4, finish: the finalists and the baselines are trained on more tokens.

The study remembers every final that has ended, so the same command never trains one twice. Trials and finals are
different values everywhere: a loss after more tokens never enters a ranking of trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nas.choosing.finalists import finalists
from nas.choosing.selection import best, inside
from nas.planning.errors import TRIES, Failure
from nas.planning.plan import Plan
from nas.planning.specs import final_spec, final_windows
from nas.running.task_lists import FinalUpdate, run_finals
from nas.running.workers import Workers
from nas.stages.events import FinalChanged, FinalsStarted, Listener, Progressed, StepEnded
from nas.stages.try_candidates import Tried
from nas.study.records import FinalRecord
from nas.study.study import SearchStudy
from search_spaces.errors import InputError
from trials.distill.checkpoint import Rung
from trials.final import VERSION
from trials.text.validation import OF_TEXT

EPOCH = time.time() - time.monotonic()
MEASURED = ("trial_loss", "kl", "val_kl", "seconds", "peak_memory_bytes", "resumed_from")


@dataclass(frozen=True)
class Finished(Tried):
    """A search whose finals are done; there are none without a final stage."""

    finals: tuple[FinalRecord, ...]


def finish(tried: Tried, workers: Workers, announce: Listener) -> Finished:
    """Train the finals of all budgets that have a complete trial.

    Raises InputError when a worker does, and when finals failed by their surroundings: without them another student
    might win.
    """
    plan, study = tried.plan, tried.study
    if not plan.settings.finalists:
        return Finished(**vars(tried), finals=())
    trials = [(part, inside(part.target.budget, part.target.shape, tried.records)) for part in plan.parts]
    finals = [recalled(plan, study, one) for part, own in trials if best(own) for one in finalists(part, own)]
    if done := sum(one.ended is not None for one in finals):
        announce(Progressed(f"study {plan.study}: {done} of {len(finals)} finals are done already"))
    announce(FinalsStarted(plan, finals))
    ended = train_finals(plan, study, finals, workers, lambda everything, one: announce(FinalChanged(everything, one)))
    announce(StepEnded())
    undone = [one for one in ended if one.state == "FAIL" and (study.recall(_label(one)) or {}).get("state") != "FAIL"]
    if undone:
        what = f"{len(undone)} of {len(ended)} finals"
        raise InputError(
            f"{what} failed by their surroundings, each {TRIES} times: {undone[0].reason}; mend the cause; the same "
            "command tries them again"
        )
    return Finished(**vars(tried), finals=tuple(ended))


def recalled(plan: Plan, study: SearchStudy, record: FinalRecord) -> FinalRecord:
    """``record`` as the study remembers it. A final whose files are gone starts again."""
    known = study.recall(_label(record))
    if known is None:
        return record
    found = replace(FinalRecord.from_dict(known), roles=record.roles, loads_in=record.loads_in)
    if found.ended is None or (found.state == "COMPLETE" and final_windows(plan, found) is None):
        return replace(record, started=found.started)
    return found


def train_finals(
    plan: Plan,
    study: SearchStudy,
    finals: Sequence[FinalRecord],
    workers: Workers,
    on_change: Callable[[list[FinalRecord], FinalRecord], None],
) -> list[FinalRecord]:
    """Train the WAITING ones of ``finals``, and return all of them as they are then.

    ``on_change`` is called with all finals and the one that changed. Raises InputError when a worker does.
    """
    stage = {one.name: one for one in finals}

    def on_result(name: str, update: FinalUpdate) -> None:
        before, stage[name] = stage[name], updated(stage[name], update)
        lasting = not (isinstance(update, Failure) and update.retry)  # the next run tries it again
        if lasting:
            study.remember(_label(stage[name]), stage[name].to_dict())
        if stage[name] != before:
            on_change(list(stage.values()), stage[name])

    waiting = [one for one in stage.values() if one.state == "WAITING"]
    longest_first = sorted(waiting, key=lambda one: one.curve[-1][0] if one.curve else 0)  # so all end together
    run_finals({one.name: final_spec(plan, one) for one in longest_first}, workers, on_result)
    return list(stage.values())


def updated(record: FinalRecord, update: FinalUpdate) -> FinalRecord:
    """``record`` after ``update``. A rung that is known already changes nothing."""
    if update is None:
        return replace(record, state="RUNNING", started=record.started or _now())
    if isinstance(update, Rung):
        known = bool(record.curve) and update.tokens <= record.curve[-1][0]  # a rung of the trial, or of a retry
        rung = (update.tokens, update.metrics["val_loss"])
        return record if known else replace(record, curve=(*record.curve, rung))
    if isinstance(update, Failure):
        return replace(record, state="FAIL", reason=update.reason, ended=_now())
    values = update.to_dict()
    measured = {name: float(values[name]) for name in MEASURED if values[name] is not None}
    texts = {f"{OF_TEXT}{name}": loss for name, loss in update.losses.items()}
    return replace(
        record,
        state="COMPLETE",
        val_loss=update.val_loss,
        curve=update.curve,
        metrics={**measured, **texts},
        windows=update.windows_digest,
        ended=_now(),
    )


def _now() -> float:
    """Seconds since the epoch by the wall clock as it was when this process started, so that it never jumps."""
    return EPOCH + time.monotonic()


def _label(record: FinalRecord) -> str:
    return f"final {VERSION} {record.name}"
