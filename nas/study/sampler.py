"""An Optuna sampler that proposes each architecture of the budget bands once, and nothing else."""

from __future__ import annotations

import copy
import heapq
import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas.study.objectives import Point, places
from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.shape import ModelShape
from search_spaces.space import LAYERS, SearchSpace
from search_spaces.stored_size import fits

INTERRUPTED = "interrupted"  # the reason of a trial whose driver died; it is queued again and is no failure of its own
STARTUP_TRIALS = 8  # before the sampler models the losses; the first candidates count
POPULATION = 8  # of a generation of NSGA-II; a search has only a few dozen trials
BEST, NEWEST = 25, 975  # trials that the inner sampler learns from, of a study with thousands

Inner = Callable[[int], BaseSampler | None]

# Each trial gets a new inner sampler with a seed of its own. So a continued search proposes the same candidates as an
# uninterrupted one.
INNER: dict[str, Inner] = {
    "screen": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
    "random": lambda _: None,
    "exhaustive": lambda _: None,
}


class FeasibleSampler(BaseSampler):
    """Moves the proposal of an inner sampler to the nearest feasible architecture that is still untried.

    The inner sampler sees the whole grid, and only a few per cent of the grid lie in a band. The study records the
    architecture that was built, so the inner sampler learns from that one. Distances are Euclidean between positions on
    the axes, each axis scaled to [0, 1].

    Without a proposal of the inner sampler, and for ``random``, the draw is uniform over the untried architectures.
    ``exhaustive`` takes them in grid order. ``screen`` takes the architectures of ``screened`` by ascending loss before
    retraining, and continues as ``tpe`` after the last one. With other objectives beside the loss (``costs``),
    ``screen`` begins with the architectures that the fewest others of the band dominate.

    Of several ``budgets``, the next trial goes to the one with the fewest trials, if it has untried architectures left.
    """

    def __init__(
        self,
        name: str,
        space: SearchSpace,
        feasible: tuple[Architecture, ...],
        seed: int,
        budgets: tuple[Budget, ...] = (),
    ) -> None:
        self.name = name
        self.seed = seed
        self.feasible = feasible
        self.space = space
        self.screened: Mapping[str, float | None] = {}  # by key
        self.costs: Callable[[Architecture], Point] = lambda _: ()
        self.bands = np.array([band(budgets, space.shape, one) for one in feasible])
        sizes = [space.sizes(one) for one in feasible]
        self.positions = np.array([space.position(one) for one in sizes])
        self._indices = {tuple(one.values()): index for index, one in enumerate(sizes)}
        self.trials: Sequence[FrozenTrial] = ()  # all before the one that is asked for; `SearchStudy.ask` sets them
        self._taken = np.zeros(len(feasible), bool)
        self._open: list[int] = []  # numbers of trials whose sizes were not known when they were last looked at
        self._looked_at = 0  # so many trials of the study have been looked at
        self._orders: dict[int, list[int]] = {}  # by band: the screened architectures, best first

    def untried(self, trials: Sequence[FrozenTrial]) -> NDArray[np.intp]:
        """Indices of the feasible architectures that none of ``trials``, all of the study's in order, has.

        Trials count in any state, queued ones too. Those that an earlier call has seen are not looked at again.
        """
        numbers, self._open = [*self._open, *range(self._looked_at, len(trials))], []
        self._looked_at = len(trials)
        for number in numbers:
            trial = trials[number]
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            index = self._indices.get(tuple(params.get(axis) for axis in self.space.axes))
            if index is not None:
                self._taken[index] = True
            if not trial.params and not trial.state.is_finished():
                self._open.append(number)
        return np.flatnonzero(~self._taken)

    def architecture(self, sizes: Mapping[str, Any]) -> Architecture:
        """The architecture with these ``sizes`` by axis. All trials share the feasible ones, to save memory."""
        index = self._indices.get(tuple(sizes[axis] for axis in self.space.axes))
        return self.space.architecture(sizes) if index is None else self.feasible[index]

    def forget_order(self) -> None:
        """Rank the screened architectures anew: a measurement has changed."""
        self._orders.clear()

    def _of_next_band(self, untried: NDArray[np.intp]) -> NDArray[np.intp]:
        whole = np.bincount(self.bands)
        left = np.bincount(self.bands[untried], minlength=len(whole))
        if np.count_nonzero(left) < 2:
            return untried
        chosen = min(np.flatnonzero(left), key=lambda place: (whole[place] - left[place], place))
        own: NDArray[np.intp] = untried[self.bands[untried] == chosen]
        return own

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All axes of the space, even before the first trial."""
        return distributions(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The sizes of the next architecture. Raises RuntimeError when every feasible one has been tried."""
        untried = self._of_next_band(self.untried(self.trials))
        if not len(untried):
            raise RuntimeError("every feasible architecture has been tried")
        seed = int(np.random.SeedSequence([self.seed, _ordinal(self.trials, trial)]).generate_state(1)[0])
        generator = np.random.default_rng(seed)
        if self.name == "exhaustive":
            chosen = int(untried[0])
        elif self.name == "screen" and (best := self._best_screened(untried)) is not None:
            chosen = best
        elif proposal := self._propose(_Part(study, self.trials), trial, search_space, seed):
            # NSGA-II leaves out the sizes that it mutates. They are drawn here.
            drawn = {axis: int(generator.choice(sizes)) for axis, sizes in self.space.axes.items()}
            distance = np.square(self.positions[untried] - self.space.position({**drawn, **proposal})).sum(axis=1)
            chosen = int(untried[int(distance.argmin())])
        else:
            chosen = int(untried[int(generator.integers(len(untried)))])
        return self.space.sizes(self.feasible[chosen])

    def _best_screened(self, untried: NDArray[np.intp]) -> int | None:
        """The index of the best screened architecture of ``untried``, which are all of one band, or None.

        The best is dominated by the fewest others of the band. Among equals it has the smallest loss.
        """
        place = int(self.bands[untried[0]])
        if place not in self._orders:
            self._orders[place] = self._ordered(np.flatnonzero(self.bands == place))
        return next((index for index in self._orders[place] if not self._taken[index]), None)

    def _ordered(self, own: NDArray[np.intp]) -> list[int]:
        """Those of the architectures ``own``, all of one band, that have a loss before retraining, best first."""
        losses = {int(index): self.screened.get(self.feasible[index].key) for index in own}
        points = {
            index: (loss, *self.costs(self.feasible[index])) for index, loss in losses.items() if loss is not None
        }
        counts = dict(zip(points, places(list(points.values())), strict=True))
        return sorted(points, key=lambda index: (counts[index], points[index]))

    def _propose(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution], seed: int
    ) -> dict[str, Any]:
        inner = INNER[self.name](seed)
        free = {axis: one for axis, one in search_space.items() if not one.single()}
        return inner.sample_relative(study, trial, free) if inner and free else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Raise RuntimeError: `sample_relative` gives all axes, so Optuna asks for no other parameter."""
        raise RuntimeError(f"{param_name} is not an axis of the space")


class _Part(Study):
    """``study`` with the `BEST` complete and the `NEWEST` other ones of its ``trials``, in their order.

    The time of a proposal grows with the trials that a sampler learns from. TPE divides them into at most 25 good ones
    and the rest, so its good ones are the same.
    """

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        self.__dict__.update(study.__dict__)
        self._part = list(trials)
        if len(trials) > BEST + NEWEST:
            complete = (one for one in trials[:-NEWEST] if one.state is TrialState.COMPLETE)
            best = heapq.nsmallest(BEST, complete, key=lambda one: one.values[0])
            self._part = sorted(best, key=lambda one: one.number) + list(trials[-NEWEST:])

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = [one for one in self._part if states is None or one.state in states]
        return copy.deepcopy(found) if deepcopy else found


def _ordinal(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
    """The number of ``trial`` without counting interrupted trials. An uninterrupted search has the same number."""
    return sum(one.user_attrs.get("reason") != INTERRUPTED for one in trials[: trial.number])


def band(budgets: Sequence[Budget], shape: ModelShape, architecture: Architecture) -> int:
    """The index in ``budgets`` of the budget whose band ``architecture`` lies in; 0 if in none."""
    return next((place for place, one in enumerate(budgets) if fits(one, shape, architecture)), 0)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each axis: an integer range for evenly spaced sizes, otherwise a choice.

    Choices of layers are a range too, because the database holds the distribution with every trial.
    """
    found = {name: _distribution(sizes) for name, sizes in space.axes.items()}
    if space.kept_layers:
        found[LAYERS] = IntDistribution(space.kept_layers[0], space.kept_layers[-1])
    return found


def _distribution(sizes: tuple[int, ...]) -> BaseDistribution:
    steps = {b - a for a, b in itertools.pairwise(sizes)}
    if len(steps) > 1:
        return CategoricalDistribution(sizes)
    return IntDistribution(sizes[0], sizes[-1], step=steps.pop() if steps else 1)
