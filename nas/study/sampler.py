"""An Optuna sampler that proposes only architectures of the budget band, each once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.study.objectives import Point, dominated_by
from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.space import SearchSpace

INTERRUPTED = "interrupted"  # why a trial failed whose driver went away: queued again, not counted as a failure
STARTUP_TRIALS = 8  # random draws, the informed candidates included, before a model of the losses is worth asking
POPULATION = 8  # NSGA-II's generations must be small beside the few dozen trials of a search

Inner = Callable[[int], BaseSampler | None]

# Made anew for every trial from its own seed, so that a continued search proposes what an uninterrupted one would.
INNER: dict[str, Inner] = {
    "screen": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
    "random": lambda _: None,
    "exhaustive": lambda _: None,
}


class FeasibleSampler(BaseSampler):
    """Carries the proposal of an ordinary sampler to the nearest feasible architecture that is still untried.

    The inner sampler sees the whole grid, of which a band holds a few per cent; what the study records, and what
    the inner sampler therefore learns from, is the architecture that was really built. Where the inner sampler
    has no proposal yet (or for ``random``) the draw is uniform over the untried feasible architectures;
    ``exhaustive`` takes them in grid order. ``screen`` takes those of ``screened`` by ascending loss before
    retraining, and is ``tpe`` when it has come to their end. Where ``costs`` are weighed against the loss, those come
    first that no other one of the band beats in all of it.

    Of several ``budgets`` it is the turn of the one with the fewest trials so far, while it has untried ones left.

    Distances are Euclidean between positions on the axes, each axis scaled to [0, 1].
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
        self.bands = [band(budgets, space.shape.parameters(one)) for one in feasible]
        self.positions = np.array([space.position(space.sizes(one)) for one in feasible])

    def untried(self, study: Study) -> list[int]:
        """Indices of the feasible architectures that no trial of the study has."""
        axes = self.space.axes
        tried = {tuple(trial.params.get(axis) for axis in axes) for trial in study.get_trials(deepcopy=False)}
        queued = {
            tuple(trial.system_attrs["fixed_params"].get(axis) for axis in axes)
            for trial in study.get_trials(deepcopy=False)
            if "fixed_params" in trial.system_attrs
        }
        sizes = [tuple(self.space.sizes(one).values()) for one in self.feasible]
        return [index for index, one in enumerate(sizes) if one not in tried | queued]

    def _of_next_band(self, untried: list[int]) -> list[int]:
        left = Counter(self.bands[index] for index in untried)
        if len(left) < 2:
            return untried
        whole = Counter(self.bands)
        turn = min(left, key=lambda place: (whole[place] - left[place], place))
        return [index for index in untried if self.bands[index] == turn]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All axes, whatever the study holds."""
        return distributions(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The sizes of the next architecture. Raises RuntimeError when every feasible one has been tried."""
        untried = self._of_next_band(self.untried(study))
        if not untried:
            raise RuntimeError("every feasible architecture has been tried")
        seed = int(np.random.SeedSequence([self.seed, _ordinal(study, trial)]).generate_state(1)[0])
        generator = np.random.default_rng(seed)
        if self.name == "exhaustive":
            chosen = untried[0]
        elif self.name == "screen" and (best := self._best_screened(untried)) is not None:
            chosen = best
        elif proposal := self._propose(study, trial, search_space, seed):
            # NSGA-II leaves a mutated size out, to be drawn afresh.
            drawn = {axis: int(generator.choice(sizes)) for axis, sizes in self.space.axes.items()}
            distance = np.square(self.positions[untried] - self.space.position({**drawn, **proposal})).sum(axis=1)
            chosen = untried[int(distance.argmin())]
        else:
            chosen = untried[int(generator.integers(len(untried)))]
        return self.space.sizes(self.feasible[chosen])

    def _best_screened(self, untried: list[int]) -> int | None:
        """Of the ``untried``, all of one band, the one that fewest of that band beat; then the one of least loss."""
        own = [index for index, place in enumerate(self.bands) if place == self.bands[untried[0]]]
        losses = {index: self.screened.get(self.feasible[index].key) for index in own}
        points = {
            index: (loss, *self.costs(self.feasible[index])) for index, loss in losses.items() if loss is not None
        }
        left = [index for index in untried if index in points]
        return min(left, key=lambda index: (dominated_by(points[index], points.values()), points[index]), default=None)

    def _propose(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution], seed: int
    ) -> dict[str, Any]:
        inner = INNER[self.name](seed)
        free = {axis: one for axis, one in search_space.items() if not one.single()}
        return inner.sample_relative(study, trial, free) if inner and free else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never reached: `sample_relative` gives all axes."""
        raise RuntimeError(f"{param_name} is not an axis of the space")


def _ordinal(study: Study, trial: FrozenTrial) -> int:
    """The number that ``trial`` would have, had none before it been interrupted and queued again."""
    before = (one for one in study.get_trials(deepcopy=False) if one.number < trial.number)
    return sum(one.user_attrs.get("reason") != INTERRUPTED for one in before)


def band(budgets: Sequence[Budget], parameters: int) -> int:
    """The place in ``budgets`` of the one that so many parameters lie in; 0 where there is none."""
    return next((place for place, one in enumerate(budgets) if parameters in one), 0)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Each axis as Optuna sees it: an integer range where the sizes are evenly spaced, else a choice."""
    return {name: _distribution(sizes) for name, sizes in space.axes.items()}


def _distribution(sizes: tuple[int, ...]) -> BaseDistribution:
    steps = {b - a for a, b in itertools.pairwise(sizes)}
    if len(steps) > 1:
        return CategoricalDistribution(sizes)
    return IntDistribution(sizes[0], sizes[-1], step=steps.pop() if steps else 1)
