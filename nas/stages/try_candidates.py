"""Stage 3, try: each candidate is pruned, retrained by distillation and measured in a trial of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from nas.choosing.selection import best_stock, inside, weighed
from nas.planning.plan import Plan
from nas.running.tune_run import run_trials
from nas.running.workers import Workers
from nas.stages.events import Listener, Progressed, StepEnded, TrialChanged, TrialsStarted
from nas.stages.screen import Screened
from nas.study.records import TrialRecord
from search_spaces.architecture import Architecture

KEPT_STUDENTS = 3  # the weights of the best complete trials stay on disk; others are deleted as the search proceeds


@dataclass(frozen=True)
class Tried(Screened):
    """A search whose trials are done."""

    records: tuple[TrialRecord, ...]


def try_candidates(screened: Screened, workers: Workers, announce: Listener) -> Tried:
    """Run trials until the study holds all that the plan asks for. Trials of an earlier run continue.

    Raises InputError for too little memory.
    """
    plan, study = screened.plan, screened.study
    if left := study.requeue():
        announce(Progressed(f"{left} unfinished trials of an earlier run continue from their checkpoints"))
    study.queue(screened.first)
    if done := study.finished():
        announce(Progressed(f"study {plan.study}: {done} of {plan.trials} trials are done already"))

    def on_change(number: int) -> None:
        records = study.records()
        _delete_weights(plan, records)
        for record in records:
            if record.number == number:
                announce(TrialChanged(records, record))

    announce(TrialsStarted(plan, study.records()))
    try:
        run_trials(plan, study, workers, on_change)
    except BaseException:
        study.requeue()
        raise
    announce(StepEnded())
    return Tried(**vars(screened), records=tuple(study.records()))


def _delete_weights(plan: Plan, records: Sequence[TrialRecord]) -> None:
    """Delete the students that can neither be exported nor continue. One of 260M parameters takes a gigabyte.

    A baseline that was stopped early keeps its checkpoint: the final stage continues from it.
    """
    kept: set[Architecture] = set()
    for part in plan.parts:
        own = inside(part.target.budget, records)
        ranked, stock = weighed(own, plan.objectives), best_stock(own)
        kept |= {one.architecture for one in ranked[: max(KEPT_STUDENTS, plan.settings.finalists)]}
        kept |= {*part.baselines.values(), *([stock.architecture] if stock else [])}
    for one in records:
        if one.state != "RUNNING" and one.architecture not in kept:
            shutil.rmtree(plan.trial_folder(one.architecture), ignore_errors=True)
