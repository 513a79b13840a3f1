"""Which architectures are measured before any retraining, and which of them are tried first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from nas.planning.candidates import informed
from nas.planning.plan import Plan
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace

ROUNDS = 4  # in which the second half of a screening is chosen
RIDGE = 0.01  # for sizes that are scaled to [0, 1]; chosen by `benchmarks.search.screening`

Losses = Mapping[str, float | None]
"""Losses before retraining, by the architecture's key; None for an architecture that could not be measured."""


def to_screen(plan: Plan, losses: Losses) -> tuple[Architecture, ...]:
    """The architectures to measure in every band, as far as the known ``losses`` decide it.

    A small band is measured as a whole. Of a larger band, the first half of the measurements is drawn: the informed
    candidates, then random ones. The second half follows the losses, see `follow`. A search that weighs several
    objectives draws all of them, because it wants every part of a Pareto front.
    """
    if plan.settings.sampler != "screen":
        return ()
    return tuple(one for part in plan.parts for one in _of_band(part, losses))


def first_candidates(plan: Plan, losses: Losses) -> list[tuple[str, Architecture]]:
    """The first candidates of a budget, each with the reason.

    After a screening they are the best architecture and the best stock one. The stock one makes a comparison possible:
    the sampler alone might never reach it. Other samplers start with the informed candidates.
    """
    if plan.settings.sampler == "exhaustive":
        return []
    if plan.settings.sampler != "screen":
        return informed(plan.target.shape, plan.target.feasible)
    known = {one: loss for one in plan.target.feasible if (loss := losses.get(one.key)) is not None}
    order = sorted(known, key=known.__getitem__)
    stock = [one for one in order if plan.target.shape.is_stock(one)]
    chosen = dict.fromkeys(order[:1], "best before retraining")
    for one in stock[:1]:
        chosen.setdefault(one, "best stock before retraining")
    return [(why, one) for one, why in chosen.items()]


def follow(space: SearchSpace, order: Sequence[Architecture], most: int, losses: Losses) -> tuple[Architecture, ...]:
    """The first half of ``most`` in ``order``, then, in `ROUNDS` rounds, those with the least expected loss.

    The expected loss comes from a quadratic response surface (Box and Wilson 1951), fitted to the losses of the
    architectures before. A round is decided when all of these have an entry in ``losses``, and by nothing else. So an
    interrupted search chooses the same architectures.
    """
    found = list(order[: max(1, most // 2)])
    step = max(1, most // 2 // ROUNDS)
    while len(found) < most and all(one.key in losses for one in found):
        taken = set(found)
        left = [one for one in order if one not in taken]
        measured = {one: loss for one in found if (loss := losses[one.key]) is not None}
        best_first = np.argsort(_expected(space, measured, left), kind="stable")[: min(step, most - len(found))]
        found += [left[place] for place in best_first]
    return tuple(found)


def drawn(shape: ModelShape, feasible: Sequence[Architecture], seed: int) -> tuple[Architecture, ...]:
    """The informed candidates of a band, then all others in a random order by ``seed``."""
    ideas = dict.fromkeys(one for _, one in informed(shape, feasible))
    others = [one for one in feasible if one not in ideas]
    return (*ideas, *Random(seed).sample(others, len(others)))  # nosec B311  # a search is repeatable


def _of_band(part: Plan, losses: Losses) -> tuple[Architecture, ...]:
    target, most = part.target, part.settings.screened
    if len(target.feasible) <= most:
        return target.feasible
    order = drawn(target.shape, target.feasible, part.settings.seed)
    return order[:most] if len(part.objectives) > 1 else follow(target.space, order, most, losses)


def _expected(
    space: SearchSpace, measured: Mapping[Architecture, float], others: Sequence[Architecture]
) -> NDArray[np.floating]:
    """The expected losses (n,) of the n ``others``; all equal when nothing is ``measured``."""
    if not measured:
        return np.zeros(len(others))
    known, losses = _terms(space, list(measured)), np.array(list(measured.values()))
    gram = known.T @ known + RIDGE * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ (losses - losses.mean()))
    expected: NDArray[np.floating] = losses.mean() + _terms(space, others) @ weights
    return expected


def _terms(space: SearchSpace, some: Sequence[Architecture]) -> NDArray[np.floating]:
    """The regressors (n, terms): 1, all sizes and all products of two sizes, sizes scaled to [0, 1]."""
    sizes = np.array([(1.0, *space.position(space.sizes(one))) for one in some])
    pairs = np.triu_indices(sizes.shape[1])
    products: NDArray[np.floating] = sizes[:, pairs[0]] * sizes[:, pairs[1]]
    return products
