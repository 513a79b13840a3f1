"""Ray Tune's two seats at the study: the Searcher that asks and tells, the scheduler that reports and stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas.scheduler import promotes
from nas.study import Candidate, SearchStudy
from search_spaces.architecture import Architecture

# Keys of a result beside the metrics of a rung; they tell how a trial ended.
FINAL, FAILURE, TOKENS, LOSS = "final", "failure", "tokens", "val_loss"

Notify = Callable[[int], None]


class StudySearcher(Searcher):
    """Asks the study for candidates and tells it how they ended. Holds nothing that the study does not know.

    ``describe`` turns a candidate into the configuration of a Tune trial; ``notify`` hears the number of every
    trial that has started or ended.
    """

    def __init__(self, study: SearchStudy, describe: Callable[[Candidate], dict[str, Any]], notify: Notify) -> None:
        super().__init__(metric=LOSS, mode="min")
        self.study, self.describe, self.notify = study, describe, notify
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The configuration of the next trial, or FINISHED when every feasible architecture has been asked."""
        candidate = self.study.ask()
        if candidate is None:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = candidate.number
        self.notify(candidate.number)
        return {"number": candidate.number, **self.describe(candidate)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how the trial ended: complete, stopped early, or failed and why."""
        number, last = self._numbers.pop(trial_id), result or {}
        if error or not last:
            self.study.fail(number, "its worker died, each time it was tried again")
        elif FAILURE in last:
            self.study.fail(number, last[FAILURE])
        elif not math.isfinite(last[LOSS]):
            self.study.fail(number, f"validation loss is {last[LOSS]} after {last[TOKENS]:,} tokens")
        elif FINAL in last:
            self.study.complete(number, last[LOSS], metrics_of(last))
        else:
            self.study.prune(number, metrics_of(last))
        self.notify(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state. Tune asks regularly, and wants a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never used: a continued search is a new Tune run on the same study."""
        raise NotImplementedError("continue a search by opening its study again")


class StudyScheduler(FIFOScheduler):
    """Reports every rung to the study, and with ``halving`` stops trials that are not among the best there.

    The losses that a trial is measured against come from the study, so a search that was cut off stops the same
    trials as one that was not. ``last`` is the rung that is the whole trial; nobody is stopped there.
    """

    def __init__(self, study: SearchStudy, notify: Notify, *, last: int, halving: bool) -> None:
        super().__init__()
        self.study, self.notify, self.last, self.halving = study, notify, last, halving

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Note the rung; decide whether the trial goes on."""
        if FINAL in result or FAILURE in result:
            return str(TrialScheduler.CONTINUE)
        tokens, loss = int(result[TOKENS]), float(result[LOSS])
        known = not self.study.report(trial.config["number"], tokens, loss)
        if known:  # a worker that was restarted repeats what it had reported
            return str(TrialScheduler.CONTINUE)
        self.notify(trial.config["number"])
        if not math.isfinite(loss):
            return str(TrialScheduler.STOP)
        compared = self.halving and 0 < tokens < self.last
        goes_on = not compared or promotes(loss, self.study.losses_at(tokens))
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


METRICS = (
    "zero_shot_loss",
    "kl",
    "tokens",
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "resumed_from",
)


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers of a result, without what Tune adds to it."""
    return {name: float(result[name]) for name in METRICS if name in result}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Tune configuration describes."""
    return Architecture.from_dict(config["architecture"])
