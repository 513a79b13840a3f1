"""Ray Tune's view of a study: a Searcher that asks and tells, and a scheduler that reports losses and stops trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas.choosing.promotion import Promotion
from nas.running.client import FAILURE, FINAL, LOSS, MEMORY, METRICS, RETRIED, TOKENS
from nas.study.study import Candidate, SearchStudy
from trials.text.validation import OF_TEXT

OnTrial = Callable[[int], None]
"""Is called with the number of a trial."""


class _Disposable:
    """Tune pickles its searcher and its scheduler into a snapshot. Nobody reads it: the study is the state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(_Disposable, Searcher):
    """Asks the study for candidates and tells it how they ended. Holds no state that the study does not have.

    ``describe`` turns a candidate into the configuration of a Tune trial. ``on_change`` is called for every trial that
    has started or ended, ``on_lost`` for every trial whose Tune process has died too often.
    """

    def __init__(
        self,
        study: SearchStudy,
        describe: Callable[[Candidate], dict[str, Any]],
        on_change: OnTrial,
        on_lost: OnTrial,
    ) -> None:
        super().__init__(metric=LOSS, mode="min")
        self.study, self.describe, self.on_change, self.on_lost = study, describe, on_change, on_lost
        self._numbers: dict[str, int] = {}
        self.out_of_memory = False  # Ray ended every worker of a trial because memory was short

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The configuration of the next trial, or FINISHED when there is none or memory is too short."""
        candidate = None if self.out_of_memory else self.study.ask()
        if candidate is None:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = candidate.number
        self.on_change(candidate.number)
        return {"number": candidate.number, **self.describe(candidate)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study whether the trial is complete, was stopped early, or has failed and why."""
        number, last = self._numbers.pop(trial_id), result or {}
        if error:
            self.on_lost(number)
        if last.get(MEMORY):
            self.out_of_memory = True  # the trial stays open for a search with fewer workers
            return
        if error or not last:
            self.study.fail(number, "its process died in every attempt")
        elif FAILURE in last:
            self.study.fail(number, last[FAILURE])
        elif not math.isfinite(last[LOSS]):
            self.study.fail(number, f"validation loss is {last[LOSS]} after {last[TOKENS]:,} tokens")
        elif FINAL in last:
            self.study.complete(number, last[LOSS], metrics_of(last))
        else:
            self.study.prune(number, metrics_of(last))
        self.on_change(number)

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

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Report the loss, and return Tune's CONTINUE or STOP."""
        if RETRIED in result:
            self.study.note(trial.config["number"], result[RETRIED])
        if {FINAL, FAILURE, RETRIED} & result.keys():
            return str(TrialScheduler.CONTINUE)
        number, tokens, loss = trial.config["number"], int(result[TOKENS]), float(result[LOSS])
        known = not self.study.report(number, tokens, loss)
        if known:  # a restarted worker repeats what it had reported
            return str(TrialScheduler.CONTINUE)
        self.on_change(number)
        goes_on = self.promotion.goes_on(number, tokens, loss)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers of a result, without the fields that Tune adds."""
    texts = (name for name in result if name.startswith(OF_TEXT))
    return {name: float(result[name]) for name in (*METRICS, *texts) if name in result}
