"""The Optuna study: the only state of a search.

What Tune or a worker knows can be lost at any moment. Whatever must survive is here: which candidates were asked,
what they reported, how they ended and why. Continuing a search is opening its study again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from nas.study.objectives import LATENCY_MS, LOSS, MEMORY_BYTES, PARAMETERS, Point, costs
from nas.study.records import LATENCY, MEMORY, SCREEN_LOSS, TrialRecord
from nas.study.sampler import INTERRUPTED, FeasibleSampler, band, distributions
from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace

# Surveys of architectures before the first trial: losses before retraining, and milliseconds for a generated token.
SCREENED, TIMED = "screened", "timed"


@dataclass(frozen=True)
class Candidate:
    """An architecture that the study asks to have tried, under the number of its trial."""

    number: int
    architecture: Architecture


class SearchStudy:
    """A study of one search: asks for feasible candidates and is told what came of them.

    ``identity`` holds what makes the losses of two trials comparable (teacher, corpus, recipe, band ...). A study
    that was made with another identity is refused with InputError, naming the setting, both values and the way out.
    ``feasible`` are the architectures of all ``budgets``; each budget has a competition of its own. ``objectives`` are
    those of `nas.study.objectives`.
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
    ) -> None:
        self.name = name
        self.space = space
        self.budgets, self.objectives = budgets, objectives
        self.sampler = FeasibleSampler(sampler, space, feasible, seed, budgets)
        self._study = _open(storage, name, self.sampler)
        self._asked: dict[int, Trial] = {}
        self._claim(identity)
        self._kept = {survey: self._recalled(survey) for survey in (SCREENED, TIMED)}
        self.sampler.screened, self.sampler.costs = self._kept[SCREENED], self.costs

    def _claim(self, identity: Mapping[str, Any]) -> None:
        known = self._study.user_attrs.get("identity")
        if known is None:
            self._study.set_user_attr("identity", dict(identity))
            return
        for key, value in identity.items():
            if known.get(key) != value:
                raise InputError(
                    f"study {self.name!r} was made with {key}={known.get(key)!r}, not {value!r}: its losses are not "
                    "comparable; give the old value, or another name with --study"
                )

    def recall(self, key: str) -> Any:
        """What was kept with the study under ``key``, or None."""
        return self._study.user_attrs.get(key)

    def remember(self, key: str, value: Any) -> None:
        """Keep ``value`` (JSON) with the study."""
        self._study.set_user_attr(key, value)

    def keep(self, survey: str, key: str, value: float | None) -> None:
        """Keep what a ``survey`` found of the architecture ``key``; None where it came to nothing."""
        finite = value if value is not None and math.isfinite(value) else None
        self.remember(f"{survey}/{key}", finite)
        self._kept[survey][key] = finite

    def kept(self, survey: str) -> dict[str, float | None]:
        """What is kept of a ``survey``, by the architecture's key."""
        return dict(self._kept[survey])

    def _recalled(self, survey: str) -> dict[str, float | None]:
        attributes, start = self._study.user_attrs, f"{survey}/"
        return {name.removeprefix(start): attributes[name] for name in attributes if name.startswith(start)}

    def costs(self, architecture: Architecture) -> Point:
        """What is weighed against the loss of ``architecture``, in the order of the objectives."""
        shape, latency = self.space.shape, self._kept[TIMED].get(architecture.key)
        values = {
            PARAMETERS: float(shape.parameters(architecture)),
            MEMORY_BYTES: float(shape.memory_bytes(architecture)),
            LATENCY_MS: math.inf if latency is None else latency,
        }
        return costs(self.objectives, values)

    def requeue(self) -> int:
        """Fail the trials that a driver left RUNNING when it went away, and queue them again. Returns how many."""
        left = [one for one in self._trials() if one.state is TrialState.RUNNING]
        for trial in left:
            self._study._storage.set_trial_user_attr(trial._trial_id, "reason", INTERRUPTED)
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._asked.pop(trial.number, None)
            if trial.params:
                self._enqueue(trial.params, trial.user_attrs.get("origin", "sampler"))
        return len(left)

    def queue(self, candidates: Iterable[tuple[str, Architecture]]) -> None:
        """Queue informed candidates, once in the life of a study, each with the name of the idea behind it."""
        if self.recall("queued"):
            return
        for origin, architecture in candidates:
            self._enqueue(self.space.sizes(architecture), origin)
        self.remember("queued", True)

    def _enqueue(self, params: Mapping[str, Any], origin: str) -> None:
        self._study.enqueue_trial(dict(params), user_attrs={"origin": origin})

    def ask(self) -> Candidate | None:
        """The next candidate, or None when every feasible architecture has been asked."""
        waiting = any(one.state is TrialState.WAITING for one in self._trials())
        if not waiting and not self.sampler.untried(self._study):
            return None
        trial = self._study.ask(distributions(self.space))
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", self.sampler.name)
        self._asked[trial.number] = trial
        return Candidate(trial.number, self.space.architecture(trial.params))

    def report(self, number: int, tokens: int, loss: float) -> bool:
        """Note the validation ``loss`` (nats per token) after ``tokens``. False when that rung was known already."""
        trial = self._study._storage.get_trial(self._asked[number]._trial_id)
        if tokens in trial.intermediate_values:
            return False
        self._asked[number].report(loss, tokens)
        return True

    def point(self, number: int, loss: float) -> Point:
        """``loss`` and what is weighed against it, of the candidate under ``number``."""
        return loss, *self.costs(self.space.architecture(self._asked[number].params))

    def points_at(self, tokens: int, number: int, *, stock_only: bool = False) -> list[Point]:
        """The points of all architectures that reached the rung ``tokens`` with a finite loss, one for each.

        Those of the budget that the candidate under ``number`` is for, itself among them.
        """
        own = self._band(self.space.architecture(self._asked[number].params))
        latest = {
            self.space.architecture(one.params): one.intermediate_values[tokens]
            for one in self._trials()
            if tokens in one.intermediate_values
        }
        return [
            (loss, *self.costs(architecture))
            for architecture, loss in latest.items()
            if math.isfinite(loss)
            and self._band(architecture) == own
            and (not stock_only or self.space.shape.is_stock(architecture))
        ]

    def _band(self, architecture: Architecture) -> int:
        return band(self.budgets, self.space.shape.parameters(architecture))

    def is_stock(self, number: int) -> bool:
        """Whether the candidate under ``number`` loads with a plain ``from_pretrained``."""
        return self.space.shape.is_stock(self.space.architecture(self._asked[number].params))

    def complete(self, number: int, loss: float, metrics: Mapping[str, float]) -> None:
        """The trial went its whole way; a loss that is not finite makes it a failure."""
        if not math.isfinite(loss):
            self.fail(number, f"final validation loss is {loss}")
            return
        trial = self._asked.pop(number)
        trial.set_user_attr("metrics", dict(metrics))
        self._study.tell(trial, loss)

    def prune(self, number: int, metrics: Mapping[str, float]) -> None:
        """The scheduler stopped the trial; its last reported loss becomes its value."""
        trial = self._asked.pop(number)
        trial.set_user_attr("metrics", dict(metrics))
        trial.set_user_attr("reason", "stopped early: not among the best at its rung")
        self._study.tell(trial, state=TrialState.PRUNED)

    def note(self, number: int, problem: str) -> None:
        """Keep what went wrong in an attempt that is tried again, to be said if the trial fails in the end."""
        self._asked[number].set_user_attr("problem", problem)

    def fail(self, number: int, reason: str) -> None:
        """The trial has no result, for ``reason``."""
        trial = self._asked.pop(number)
        problem = trial.user_attrs.get("problem")
        trial.set_user_attr("reason", f"{reason} (last: {problem})" if problem else reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def records(self) -> list[TrialRecord]:
        """All trials, oldest first, without the queued ones and without those that were interrupted and queued anew."""
        return [
            _record(one, self.space, self._known(self.space.architecture(one.params)))
            for one in self._trials()
            if one.state is not TrialState.WAITING and one.user_attrs.get("reason") != INTERRUPTED
        ]

    def _known(self, architecture: Architecture) -> dict[str, float]:
        """Metrics that are known of ``architecture`` whatever becomes of its trial."""
        surveys = {SCREEN_LOSS: SCREENED, LATENCY: TIMED}
        found = {metric: self._kept[survey].get(architecture.key) for metric, survey in surveys.items()}
        memory = {MEMORY: float(self.space.shape.memory_bytes(architecture))}
        return memory | {metric: value for metric, value in found.items() if value is not None}

    def finished(self) -> int:
        """How many trials came to an end, in whatever way."""
        return sum(one.state != "RUNNING" for one in self.records())

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _open(url: str, name: str, sampler: BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage: BaseStorage = optuna.storages.get_storage(url)
        return optuna.create_study(
            storage=storage, study_name=name, direction="minimize", sampler=sampler, load_if_exists=True
        )
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        raise InputError(
            f"storage {url!r}: cannot be opened ({' '.join(str(error).split())[:200]}); "
            "give an Optuna URL such as sqlite:////folder/studies.db or postgresql://host/database"
        ) from error


def _costs(architecture: Architecture, shape: ModelShape) -> dict[str, float]:
    """What the architecture costs in use: forward FLOPs a token at full context, bf16 key/value cache a token."""
    flops = shape.flops_per_token(architecture, shape.positions)
    return {"flops_per_token": float(flops), "kv_cache_bytes_per_token": float(shape.kv_cache_bytes(architecture))}


def _record(trial: FrozenTrial, space: SearchSpace, known: Mapping[str, float]) -> TrialRecord:
    architecture = space.architecture(trial.params)
    complete = trial.state is TrialState.COMPLETE
    return TrialRecord(
        number=trial.number,
        architecture=architecture,
        parameters=space.shape.parameters(architecture),
        stock=space.shape.is_stock(architecture),
        state=trial.state.name,
        reason=trial.user_attrs.get("reason"),
        val_loss=trial.value if complete else None,
        curve=tuple(sorted(trial.intermediate_values.items())),
        metrics={**_costs(architecture, space.shape), **known, **trial.user_attrs.get("metrics", {})},
        origin=trial.user_attrs.get("origin", "sampler"),
        started=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
    )
