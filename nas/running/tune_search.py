"""Ray Tune's view of a study: a Searcher that asks and tells, and a scheduler that reports losses and stops trials."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas.choosing.promotion import Promotion
from nas.planning.errors import (
    AlikeFailures,
    NothingFeasibleError,
    NoWorkerError,
    alike,
    alike_by_surroundings,
)
from nas.running.client import AGAIN, FAILURE, FINAL, LOSS, MEMORY, METRICS, TOKENS
from nas.study.study import Candidate, SearchStudy
from search_spaces.errors import InputError, one_line
from trials.text.validation import OF_TEXT

log = logging.getLogger(__name__)

DIED = "its process died"
OUT_OF_MEMORY = "Ray ended its process for lack of memory"

MANY = 1_000_000  # more than any cluster has workers
KEPT_ENDED = 200  # trials that Tune knows after their end; it may still be busy with the actors of a few of them

OnTrial = Callable[[int], None]
"""Is called with the number of a trial."""


class _Disposable:
    """Tune pickles its searcher and its scheduler into a snapshot. Nobody reads it: the study is the state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass
class _Running:
    """A candidate that Tune runs, on the worker of ``slot``."""

    candidate: Candidate
    slot: Any


class StudySearcher(_Disposable, Searcher):
    """Asks the study for candidates and tells it how they ended. Holds nothing that must survive a crash.

    A candidate is asked for when ``workers`` (`nas.running.workers.Workers`) has a free worker, which is lent to its
    trial until Tune says that this has ended. ``describe`` turns a candidate into the configuration of a Tune trial.
    ``on_change`` is called for every trial that has started or ended.

    At most ``left`` candidates are asked for. A trial whose worker or Tune process dies, or whose surroundings fail, is
    tried again after each of ``pauses``, in seconds. A trial that fails more often fails for good, and the next run of
    the command tries it again.

    ``problem`` is the error that ends the search, or None: there is no worker left, the first trials failed alike, or
    the study could not be told how a trial ended.
    """

    def __init__(
        self,
        study: SearchStudy,
        describe: Callable[[Candidate], dict[str, Any]],
        on_change: OnTrial,
        workers: Any,
        *,
        left: float = math.inf,
        pauses: Sequence[float] = (),
    ) -> None:
        super().__init__(metric=LOSS, mode="min")
        self.study, self.describe, self.on_change, self.workers = study, describe, on_change, workers
        self.left, self.pauses = left, pauses
        self._running: dict[str, _Running] = {}  # by Tune's name of the trial
        self._again: list[tuple[float, Candidate]] = []  # from when on, by the monotonic clock in seconds
        self._tries: Counter[int] = Counter()  # those that failed, by the number of the trial
        self._succeeded = any(one.state in ("COMPLETE", "PRUNED") for one in study.records())
        self._own, self._surroundings = AlikeFailures(), AlikeFailures()
        self.out_of_memory = False  # Ray ended every worker of a trial because memory was short
        self._no_worker = ""
        self._untold: Exception | None = None  # why the study could not be told how a trial ended

    @property
    def problem(self) -> Exception | None:
        """The error that ends the search before its end, if there is one."""
        if self._untold:
            return self._untold
        if self._no_worker:
            return NoWorkerError(self._no_worker)
        if self._own.reason and not self._succeeded:
            return NothingFeasibleError(alike("trials", self._own.reason))
        if self._surroundings.reason:
            return InputError(alike_by_surroundings("trials", self._surroundings.reason))
        return None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to try."""
        return self.left <= 0 and not self._again

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of the next trial, None when there is none yet, or FINISHED when there is none any more.

        A running trial may be tried again, or be the first to succeed. So the end comes only after the last of them.
        Raises what kept the study from being told how a trial ended.
        """
        if self._untold:
            raise self._untold
        if self.out_of_memory or self._no_worker:
            return str(Searcher.FINISHED)
        none_yet = None if self._running or self._again else str(Searcher.FINISHED)
        if self.problem:
            return None if self._running else str(Searcher.FINISHED)
        due = next((one for one in self._again if one[0] <= time.monotonic()), None)
        if due is None and self.left <= 0:
            return none_yet
        try:
            self._want()
            if not self.workers.has_free():
                return None
        except NoWorkerError as error:
            self._no_worker = str(error)
            return str(Searcher.FINISHED)
        candidate = due[1] if due else self.study.ask()
        if candidate is None:
            return none_yet
        slot = self.workers.take(f"trial {candidate.number} of {self.study.name}")
        if due:
            self._again.remove(due)
        else:
            self.left -= 1
        self._running[trial_id] = _Running(candidate, slot)
        self.on_change(candidate.number)
        started = {"study": self.study.name, "number": candidate.number, "worker": slot.name}
        return {**started, "attempt": self._tries[candidate.number], **self.describe(candidate)}

    def _want(self) -> None:
        possible = len(self._running) + len(self._again) + max(0.0, self.left)
        self.workers.want(int(min(possible, MANY)))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study whether the trial is complete, was stopped early, or has failed and why.

        Tune would print a traceback of what this raises, so the next `suggest` raises it.
        """
        try:
            self._end(self._running.pop(trial_id), result or {}, error)
        except Exception as untold:
            self._untold = untold

    def _end(self, one: _Running, last: dict[str, Any], error: bool) -> None:
        number, hung = one.candidate.number, one.slot.hung
        self.workers.give(one.slot)
        self._want()
        if error or not last:
            self._failed_try(one.candidate, DIED)
            return
        if last.get(AGAIN):
            reason = f"the worker died: {hung}" if hung else last[FAILURE]
            self._failed_try(one.candidate, reason, bool(last.get(MEMORY)))
            return
        if FAILURE in last:
            self._failed(number, last[FAILURE])
        elif not math.isfinite(last[LOSS]):
            self._failed(number, f"validation loss is {last[LOSS]} after {last[TOKENS]:,} tokens")
        else:
            self._ended_well(number, last)
        self.on_change(number)

    def abandon(self, why: str) -> None:
        """Count the processes of all running trials as dead, because Tune has given up. ``why`` is kept with each."""
        for trial_id in list(self._running):
            one = self._running.pop(trial_id)
            self.workers.give(one.slot)
            self._failed_try(one.candidate, why)

    def _failed_try(self, candidate: Candidate, reason: str, memory: bool = False) -> None:
        """Try the trial again after a pause, or give it up."""
        number = candidate.number
        self._tries[number] += 1
        tries = self._tries[number]
        if tries <= len(self.pauses):
            pause, most = self.pauses[tries - 1], len(self.pauses) + 1
            log.warning("trial %s: %s; try %s of %s starts in %g s", number, reason, tries + 1, most, pause)
            if reason != DIED:  # the scheduler has noted why
                self.study.note(number, reason)
            self._again.append((time.monotonic() + pause, candidate))
        elif memory:
            self.out_of_memory = True  # the trial stays open for a search with fewer workers
        else:
            self._failed(number, f"{reason} in every try" if reason == DIED else reason, again=True)
            self.on_change(number)

    def _failed(self, number: int, reason: str, again: bool = False) -> None:
        text = self.study.fail(number, reason, again=again)
        (self._surroundings if again else self._own).failed(text)

    def _ended_well(self, number: int, last: dict[str, Any]) -> None:
        self._succeeded = True
        self._surroundings.succeeded()
        if FINAL in last:
            self.study.complete(number, last[LOSS], metrics_of(last))
        else:
            self.study.prune(number, metrics_of(last))

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file. Tune asks for one regularly; the study is the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Raise NotImplementedError: a search continues by a new Tune run on the same study."""
        raise NotImplementedError("continue a search by opening its study again")


class StudyScheduler(_Disposable, FIFOScheduler):
    """Reports the loss at every rung to the study, and stops the trials that ``promotion`` does not let go on.

    ``on_change`` is called for every trial that has reached a rung.
    """

    def __init__(self, study: SearchStudy, on_change: OnTrial, promotion: Promotion) -> None:
        super().__init__()
        self.study, self.on_change, self.promotion = study, on_change, promotion
        self._ended: deque[Any] = deque()  # Tune's trials that have ended, oldest first
        self._keeps = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let Tune keep the processes of trials that have ended for later trials. By default it keeps one of them.

        A process takes a second to start, and all of them start on the driver's node.
        """
        if not self._keeps:
            tune_controller._actor_cache.increase_max(trial.placement_group_factory, MANY)
        self._keeps = True

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return None: Tune starts the trials in their order, and a trial waits for the process that starts for it.

        Otherwise Tune gives it the process of a trial that ends, and ends the one that starts. The next trial then has
        none and starts another, and so on: many trials that are short kept a machine busy with starting processes.
        """
        controller = tune_controller._tune_controller
        for waiting in controller._resources_to_pending_trials.values():
            waiting.difference_update(controller._trial_to_actor)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Report the loss, and return Tune's CONTINUE or STOP."""
        if {FINAL, FAILURE} & result.keys():
            return str(TrialScheduler.CONTINUE)
        number, tokens, loss = trial.config["number"], int(result[TOKENS]), float(result[LOSS])
        known = not self.study.report(number, tokens, loss)
        if known:  # a restarted worker repeats what it had reported
            return str(TrialScheduler.CONTINUE)
        self.on_change(number)
        goes_on = self.promotion.goes_on(number, tokens, loss)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Let Tune forget a trial that ended long ago. Otherwise it keeps tens of KB of each until its run ends."""
        self._ended.append(trial)
        if len(self._ended) > KEPT_ENDED:
            old = self._ended.popleft()
            tune_controller.get_trials().remove(old)
            tune_controller._stopped_trials.discard(old)
            tune_controller._trials_to_cache.discard(old)
            old.__dict__.clear()  # Python would free its reference cycles late, since a search has many objects

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note why the Tune process of a trial died. Tune tells the searcher right after this that it has."""
        text = Path(trial.error_file).read_text("utf-8", "replace") if trial.error_file else ""
        text = OUT_OF_MEMORY if "low on memory" in text else one_line(text.partition("\n")[2])  # after Tune's heading
        if text:
            self.study.note(trial.config["number"], text[:300])


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers of a result, without the fields that Tune adds."""
    texts = (name for name in result if name.startswith(OF_TEXT))
    return {name: float(result[name]) for name in (*METRICS, *texts) if name in result}
