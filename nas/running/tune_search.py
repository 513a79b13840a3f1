"""Ray Tune's two seats at the study: the Searcher that asks and tells, the scheduler that reports and stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas.planning.rungs import promotes
from nas.running.client import FAILURE, FINAL, LOSS, MEMORY, METRICS, RETRIED, TOKENS
from nas.study.objectives import dominated_by
from nas.study.study import Candidate, SearchStudy
from trials.losses.window_losses import OF_TEXT

Notify = Callable[[int], None]


class _Disposable:
    """Tune pickles its searcher and scheduler into a snapshot; ours is never read, the study is the state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(_Disposable, Searcher):
    """Asks the study for candidates and tells it how they ended. Holds nothing that the study does not know.

    ``describe`` turns a candidate into the configuration of a Tune trial; ``notify`` hears the number of every
    trial that has started or ended, and ``let_go`` that of one that Tune has given up.
    """

    def __init__(
        self,
        study: SearchStudy,
        describe: Callable[[Candidate], dict[str, Any]],
        notify: Notify,
        let_go: Notify,
    ) -> None:
        super().__init__(metric=LOSS, mode="min")
        self.study, self.describe, self.notify, self.let_go = study, describe, notify, let_go
        self._numbers: dict[str, int] = {}
        self.out_of_memory = False  # whether Ray ended the workers of a trial for want of it, each time

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The configuration of the next trial; FINISHED when all were asked, or when there is too little memory."""
        candidate = None if self.out_of_memory else self.study.ask()
        if candidate is None:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = candidate.number
        self.notify(candidate.number)
        return {"number": candidate.number, **self.describe(candidate)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how the trial ended: complete, stopped early, or failed and why."""
        number, last = self._numbers.pop(trial_id), result or {}
        if error:
            self.let_go(number)
        if last.get(MEMORY):
            self.out_of_memory = True  # the trial stays open, for a search with fewer workers
            return
        if error or not last:
            self.study.fail(number, "given up: its process died each time it was tried")
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


class StudyScheduler(_Disposable, FIFOScheduler):
    """Reports every rung to the study, and with ``halving`` stops trials that are not among the best there.

    The losses that a trial is measured against come from the study, so a search that was cut off stops the same
    trials as one that was not. ``last`` is the rung that is the whole trial; nobody is stopped there. At every other
    one the best ``fewest`` of those seen there go on at least.
    """

    def __init__(self, study: SearchStudy, notify: Notify, *, last: int, halving: bool, fewest: int = 1) -> None:
        super().__init__()
        self.study, self.notify, self.last, self.halving, self.fewest = study, notify, last, halving, fewest

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Note the rung; decide whether the trial goes on."""
        if RETRIED in result:
            self.study.note(trial.config["number"], result[RETRIED])
        if {FINAL, FAILURE, RETRIED} & result.keys():
            return str(TrialScheduler.CONTINUE)
        number, tokens, loss = trial.config["number"], int(result[TOKENS]), float(result[LOSS])
        known = not self.study.report(number, tokens, loss)
        if known:  # a worker that was restarted repeats what it had reported
            return str(TrialScheduler.CONTINUE)
        self.notify(number)
        goes_on = math.isfinite(loss) and (tokens in (0, self.last) or self._promoted(number, tokens, loss))
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def _promoted(self, number: int, tokens: int, loss: float) -> bool:
        """Whether the trial is among the best of its rung and budget, or the best there that loads without our code.

        The second keeps the comparison of stock and custom shapes possible: without it a search may end with no
        stock candidate that went its whole way.
        """
        if not self.halving:
            return True
        own, points = self.study.point(number, loss), self.study.points_at(tokens, number)
        if promotes(dominated_by(own, points), [dominated_by(one, points) for one in points], self.fewest):
            return True
        stock = self.study.points_at(tokens, number, stock_only=True)
        return self.study.is_stock(number) and not dominated_by(own, stock)


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers of a result, without what Tune adds to it."""
    texts = (name for name in result if name.startswith(OF_TEXT))
    return {name: float(result[name]) for name in (*METRICS, *texts) if name in result}
