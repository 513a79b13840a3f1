"""The Optuna study: the only state of a search.

The study holds everything that must survive a crash: which candidates were proposed, what they reported, how they ended
and why. The state of Tune and of the workers can be lost at any moment. To continue a search, open its study again.
"""

from __future__ import annotations

import math
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from nas.study.database import opening
from nas.study.identity import WORDS, differences, unmixable
from nas.study.objectives import LATENCY_MS, LOSS, MEMORY_BYTES, PARAMETERS, STORED_BYTES, Point, costs
from nas.study.only_writer import OnlyWriter
from nas.study.records import TrialRecord
from nas.study.sampler import INTERRUPTED, FeasibleSampler, band, distributions
from nas.study.standings import Standings
from nas.study.storage import explained, open_storage
from nas.study.trial_records import (
    AFTER,
    ARCHITECTURE,
    ELAPSED,
    RETRY,
    SCREENED,
    TIMED,
    measured_in,
    queued_again,
    record_of,
    shown,
)
from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace
from search_spaces.stored_size import memory_bytes, stored_bytes

VALUE = "val_loss"  # what Optuna's pages and tables call the value of a trial
MIXED = "mixed"  # the name under which a study keeps what `--force` has mixed
JUMP_SECONDS = 2.0  # by which a clock that does not jump differs from the monotonic one, at most
NEWER = {"arithmetic"}  # keys that the identity of an older study lacks


class Rank(NamedTuple):
    """A trial among all that ``seen`` at its rung, itself included.

    ``dominated_by`` others dominate it. ``better`` others are dominated by fewer than that.
    """

    better: int
    dominated_by: int
    seen: int


@dataclass(frozen=True)
class Candidate:
    """An architecture that the study proposes, and the number of its trial."""

    number: int
    architecture: Architecture


class SearchStudy:
    """The study of one search. It proposes feasible candidates and records their results.

    ``identity`` holds the settings that make the losses of two trials comparable (teacher, corpus, recipe, band ...).
    ``feasible`` holds the architectures of all ``budgets``. A trial competes only with trials of its own budget.
    ``objectives`` are names from `nas.study.objectives`.

    Raises InputError when ``storage`` cannot be opened, and when the study was made with another identity. The message
    then names the settings, both values of each and the way out. With ``force`` the study is opened all the same, and
    `mixed` tells what it mixes.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        space: SearchSpace,
        feasible: tuple[Architecture, ...],
        *,
        sampler: str,
        seed: int,
        identity: Mapping[str, Any],
        budgets: tuple[Budget, ...] = (),
        objectives: tuple[str, ...] = (LOSS,),
        force: bool = False,
    ) -> None:
        self.name = name
        self.space = space
        self.budgets, self.objectives = budgets, objectives
        self.sampler = FeasibleSampler(sampler, space, feasible, seed, budgets)
        self._study = _open(storage, name, self.sampler)
        self._asked: dict[int, Trial] = {}
        self._began: dict[int, float] = {}  # by the monotonic clock, in seconds
        self._reported: defaultdict[int, set[int]] = defaultdict(set)  # the tokens of the losses of running trials
        self._check_identity(identity, force)
        self._measured = {quantity: measured_in(self._study.user_attrs, quantity) for quantity in (SCREENED, TIMED)}
        self.sampler.screened, self.sampler.costs = self._measured[SCREENED], self.costs
        self._ended: dict[int, TrialRecord] = {}  # records that cannot change any more, by number
        self._standings: defaultdict[tuple[int, int, bool], Standings] = defaultdict(Standings)
        self.read_anew()

    def read_anew(self) -> None:
        """Read all trials. Call it when this process has become the only driver: others may have written until then."""
        if isinstance(self._study._storage, OnlyWriter):
            self._study._storage.forget()
        self._ended.clear()
        self._standings.clear()
        for trial in self._trials():
            for tokens, loss in trial.intermediate_values.items():
                self._note_rung(self.sampler.architecture(trial.params), tokens, loss)

    def _check_identity(self, identity: Mapping[str, Any], force: bool) -> None:
        known = self._study.user_attrs.get("identity")
        if known is None:
            self._study.set_user_attr("identity", dict(identity))
            return
        for key in NEWER & identity.keys() - known.keys():  # an earlier version of this program made the study
            known = {**known, key: identity[key]}
            self._study.set_user_attr("identity", known)
        found = differences(known, identity, self.space.to_dict().keys())
        if not found:
            return
        made = f"study {self.name!r} was made {', '.join(found.values())}"
        old = "give the old value, or " if found.keys() - WORDS.keys() else "give "
        if not force:
            raise InputError(
                f"{made}: its losses are not comparable; {old}another name with --study, or mix them with --force"
            )
        if problem := unmixable(found, self._trials(), distributions(self.space)):
            raise InputError(f"{made}: --force cannot mix these, because {problem}; give another name with --study")
        self.remember(MIXED, sorted({*(self.recall(MIXED) or ()), *found.values()}))

    @property
    def mixed(self) -> list[str]:
        """In what the trials of this study differ, because somebody gave ``--force``; in words."""
        return list(self.recall(MIXED) or ())

    def recall(self, key: str) -> Any:
        """The value that the study keeps under ``key``, or None."""
        return self._study.user_attrs.get(key)

    def remember(self, key: str, value: Any) -> None:
        """Keep ``value`` (JSON) in the study under ``key``."""
        self._study.set_user_attr(key, value)

    @property
    def unique_id(self) -> str:
        """A unique name of this study. Another folder may hold a study of the same name, for the same MLflow server."""
        if self.recall("uid") is None:
            self.remember("uid", f"{self.name}-{uuid.uuid4().hex[:12]}")
        return str(self.recall("uid"))

    def keep(self, quantity: str, key: str, value: float | None) -> None:
        """Keep the measured ``quantity`` of the architecture ``key``. A value that is not finite is kept as None."""
        finite = value if value is not None and math.isfinite(value) else None
        known = self._measured[quantity]
        known[key] = finite
        group = _group(key)
        self.remember(f"{quantity} {group}", {one: found for one, found in known.items() if _group(one) == group})
        self.sampler.forget_order()
        self._ended.clear()

    def kept(self, quantity: str) -> dict[str, float | None]:
        """All kept values of a ``quantity``, by the architecture's key. None means that the measurement failed."""
        return dict(self._measured[quantity])

    def costs(self, architecture: Architecture) -> Point:
        """The objectives of ``architecture`` other than the loss, in their order. An unknown latency is infinite."""
        shape, latency = self.space.shape, self._measured[TIMED].get(architecture.timed.key)
        values = {
            PARAMETERS: float(shape.parameters(architecture)),
            STORED_BYTES: float(stored_bytes(shape, architecture)),
            MEMORY_BYTES: float(memory_bytes(shape, architecture)),
            LATENCY_MS: math.inf if latency is None else latency,
        }
        return costs(self.objectives, values)

    def requeue(self, *, failed: bool = False) -> int:
        """Fail the RUNNING trials of a driver or Tune run that has ended, and queue them again. Returns how many.

        With ``failed`` these are also the trials that failed by their surroundings, see `fail`.
        """
        trials = self._trials()
        left = [one for one in trials if one.state is TrialState.RUNNING]
        for trial in left:
            self._interrupt(trial)
        known = queued_again(trials)
        again = [one for one in trials if failed and one.user_attrs.get(RETRY) and one.number not in known]
        for trial in again:
            self._enqueue(trial.params, trial.user_attrs.get("origin", "sampler"), after=trial.number)
        return len(left) + len(again)

    def _interrupt(self, trial: FrozenTrial) -> None:
        self._study._storage.set_trial_user_attr(trial._trial_id, "reason", INTERRUPTED)
        self._study.tell(trial.number, state=TrialState.FAIL)
        self._asked.pop(trial.number, None)
        self._began.pop(trial.number, None)
        self._reported.pop(trial.number, None)
        if trial.params:
            self._enqueue(trial.params, trial.user_attrs.get("origin", "sampler"))

    def queue(self, candidates: Iterable[tuple[str, Architecture]]) -> None:
        """Queue the first candidates, each with the name of its origin. Later calls on the same study do nothing."""
        if self.recall("queued"):
            return
        for origin, architecture in candidates:
            self._enqueue(self.space.sizes(architecture), origin)
        self.remember("queued", True)

    def _enqueue(self, params: Mapping[str, Any], origin: str, after: int | None = None) -> None:
        before = {} if after is None else {AFTER: after}
        self._study.enqueue_trial(dict(params), user_attrs={"origin": origin, **before})

    def ask(self) -> Candidate | None:
        """The next candidate, or None when every feasible architecture has been proposed."""
        trials = self.sampler.trials = self._trials()
        waiting = any(one.state is TrialState.WAITING for one in trials)
        if not waiting and not len(self.sampler.untried(trials)):
            return None
        trial = self._study.ask(distributions(self.space))
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", self.sampler.name)
        self._asked[trial.number], self._began[trial.number] = trial, time.monotonic()
        architecture = self.sampler.architecture(trial.params)
        trial.set_user_attr(ARCHITECTURE, architecture.to_dict())  # whoever reads the study has no search space
        return Candidate(trial.number, architecture)

    def report(self, number: int, tokens: int, loss: float) -> bool:
        """Record the validation ``loss`` (nats per token) after ``tokens``. Returns False for a rung already known."""
        if tokens in self._reported[number]:
            return False
        self._asked[number].report(loss, tokens)
        self._reported[number].add(tokens)
        self._note_rung(self._architecture(number), tokens, loss)
        return True

    def rank_at(self, tokens: int, number: int, *, stock_only: bool = False) -> Rank:
        """The rank of trial ``number`` among the architectures that reached the rung ``tokens`` with a finite loss.

        Only architectures in the budget of the trial count. ``stock_only`` leaves out architectures that need our code
        to load. Raises KeyError when the trial itself is not among them.
        """
        architecture = self._architecture(number)
        standings = self._standings[tokens, self._band(architecture), stock_only]
        return Rank(standings.better(architecture), standings.dominated_by(architecture), len(standings))

    def _note_rung(self, architecture: Architecture, tokens: int, loss: float) -> None:
        if not math.isfinite(loss):
            return
        point = (loss, *self.costs(architecture))
        for stock_only in (False, True) if self.space.shape.is_stock(architecture) else (False,):
            self._standings[tokens, self._band(architecture), stock_only].put(architecture, point)

    def _architecture(self, number: int) -> Architecture:
        return self.sampler.architecture(self._asked[number].params)

    def _band(self, architecture: Architecture) -> int:
        return band(self.budgets, self.space.shape, architecture)

    def is_stock(self, number: int) -> bool:
        """Whether the architecture of trial ``number`` loads with a plain ``from_pretrained``."""
        return self.space.shape.is_stock(self._architecture(number))

    def complete(self, number: int, loss: float, metrics: Mapping[str, float]) -> None:
        """Record that a trial is complete, with its final ``loss``. A loss that is not finite makes the trial fail."""
        if not math.isfinite(loss):
            self.fail(number, f"final validation loss is {loss}")
            return
        trial = self._ending(number)
        trial.set_user_attr("metrics", dict(metrics))
        self._study.tell(trial, loss)

    def prune(self, number: int, metrics: Mapping[str, float]) -> None:
        """Record that the scheduler stopped a trial. The last reported loss becomes the value of the trial."""
        trial = self._ending(number)
        trial.set_user_attr("metrics", dict(metrics))
        trial.set_user_attr("reason", "stopped early: not among the best at its rung")
        self._study.tell(trial, state=TrialState.PRUNED)

    def note(self, number: int, problem: str) -> None:
        """Keep the ``problem`` of an attempt that is retried. If the trial fails in the end, its reason names it."""
        self._asked[number].set_user_attr("problem", problem)

    def fail(self, number: int, reason: str, *, again: bool = False) -> str:
        """Record that a trial failed, and the ``reason``. Returns it with the last problem that was noted.

        With ``again`` its surroundings failed. This is no verdict on the architecture: `requeue` can queue it again.
        """
        trial = self._ending(number)
        problem = trial.user_attrs.get("problem")
        text = f"{reason} (last problem: {problem})" if problem and problem != reason else reason
        if again:
            trial.set_user_attr(RETRY, True)
            trial.set_user_attr("failure", f"{text}; the same command tries it again")
        trial.set_user_attr("reason", INTERRUPTED if again else text)
        self._study.tell(trial, state=TrialState.FAIL)
        return text

    def _ending(self, number: int) -> Trial:
        """The trial ``number``, which ends now. Its true duration is kept when the wall clock has jumped meanwhile."""
        trial = self._asked.pop(number)
        self._reported.pop(number, None)
        elapsed = time.monotonic() - self._began.pop(number)
        started = trial.datetime_start
        if started is not None and abs((datetime.now() - started).total_seconds() - elapsed) > JUMP_SECONDS:
            trial.set_user_attr(ELAPSED, elapsed)
        return trial

    def tries_again(self, number: int) -> bool:
        """Whether trial ``number`` failed by its surroundings, so that its files are still needed."""
        storage, study_id = self._study._storage, self._study._study_id
        trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, number))
        return bool(trial.user_attrs.get(RETRY))

    def records(self) -> list[TrialRecord]:
        """All trials, oldest first, without queued trials and without those that were interrupted and queued again."""
        return [self._ended.get(one.number) or self._record(one) for one in shown(self._trials())]

    def record(self, number: int) -> TrialRecord:
        """The trial ``number`` as it is now."""
        storage, study_id = self._study._storage, self._study._study_id
        return self._record(storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, number)))

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        architecture = self.sampler.architecture(trial.params)
        losses, latencies = self._measured[SCREENED], self._measured[TIMED]
        record = record_of(trial, self.space.shape, architecture, losses, latencies)
        if trial.state.is_finished():
            self._ended[trial.number] = record
        return record

    def finished(self) -> int:
        """How many trials have ended: complete, stopped early or failed."""
        return sum(one.state.is_finished() and one.user_attrs.get("reason") != INTERRUPTED for one in self._trials())

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _open(url: str, name: str, sampler: BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with explained(url), opening(url):
        storage = open_storage(url, alone=True)
        study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize", sampler=sampler, load_if_exists=True
        )
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names([VALUE])
        return study


def _group(key: str) -> str:
    """The part of an architecture's ``key`` that names its depth. Values are kept together by it.

    One attribute for each architecture would bury the others in Optuna's dashboard. A single one for all would be
    written anew for each of thousands.
    """
    return key.partition("-")[0]
