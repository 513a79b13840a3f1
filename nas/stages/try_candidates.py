"""Stage 3, try: each candidate is pruned, retrained by distillation and measured in a trial of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.choosing.selection import best_stock, weighed
from nas.planning.plan import Plan
from nas.running.tune_run import run_trials
from nas.running.workers import Workers
from nas.stages.events import Listener, Progressed, StepEnded, TrialChanged, TrialsStarted
from nas.stages.screen import Screened
from nas.study.records import TrialRecord
from search_spaces.stored_size import fits

KEPT_STUDENTS = 3  # the weights of the best complete trials stay on disk; others are deleted as the search proceeds


@dataclass(frozen=True)
class Tried(Screened):
    """A search whose trials are done."""

    records: tuple[TrialRecord, ...]


def try_candidates(screened: Screened, workers: Workers, announce: Listener) -> Tried:
    """Run trials until the study holds all that the plan asks for.

    Trials that an earlier run left unfinished continue, and so do those that failed by their surroundings. Raises what
    `run_trials` raises.
    """
    plan, study = screened.plan, screened.study
    if left := study.requeue(failed=True):
        announce(Progressed(f"{left} unfinished trials of an earlier run continue from their checkpoints"))
    study.queue(screened.first)
    if done := study.finished():
        announce(Progressed(f"study {plan.study}: {done} of {plan.trials} trials are done already"))

    students = KeptStudents(plan, study.records())

    def on_change(number: int) -> None:
        record = study.record(number)
        if record.state != "FAIL" or not study.tries_again(number):  # a trial that is tried again needs its checkpoint
            students.update(record)
        announce(TrialChanged(record))

    announce(TrialsStarted(plan, study.records()))
    try:
        run_trials(plan, study, workers, on_change)
    except BaseException:
        study.requeue()
        raise
    announce(StepEnded())
    return Tried(**vars(screened), records=tuple(study.records()))


class KeptStudents:
    """Deletes the students that can neither be exported nor continue. One of 260M parameters takes a gigabyte.

    The best trials of each budget keep theirs, and so does the best stock trial. A baseline that was stopped early
    keeps its checkpoint: the final stage continues from it.
    """

    def __init__(self, plan: Plan, records: Sequence[TrialRecord]) -> None:
        self.plan = plan
        self._baselines = {one for part in plan.parts for one in part.baselines.values()}
        self._deleted: set[Path] = set()
        self._best: dict[str, list[TrialRecord]] = {part.part: [] for part in plan.parts}
        for record in records:
            self.update(record)

    def update(self, record: TrialRecord) -> None:
        """Delete what the end of the trial ``record`` leaves without a use."""
        if record.state == "RUNNING":
            self._deleted.discard(self.plan.trial_folder(record.architecture))
            return
        shape = self.plan.target.shape
        part = next(one for one in self.plan.parts if fits(one.target.budget, shape, record.architecture))
        known = [*self._best[part.part], record]
        ranked, stock = weighed(known, self.plan.objectives), best_stock(known)
        kept = [*ranked[: max(KEPT_STUDENTS, self.plan.settings.finalists)], *([stock] if stock else [])]
        for one in known:
            folder = self.plan.trial_folder(one.architecture)
            if one not in kept and one.architecture not in self._baselines and folder not in self._deleted:
                shutil.rmtree(folder, ignore_errors=True)
                self._deleted.add(folder)
        # By the loss alone, a trial that is not among the best now never will be. With more objectives it may be.
        self._best[part.part] = kept if len(self.plan.objectives) == 1 else known
