"""Which architectures are measured before any retraining, where a band holds too many to measure all of them."""

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
RIDGE = 0.01  # beside sizes that are scaled to [0, 1]; settled by `benchmarks.search.screening`

Losses = Mapping[str, float | None]
"""Before retraining, by the architecture's key; None where there is none."""


def to_screen(plan: Plan, losses: Losses) -> tuple[Architecture, ...]:
    """What is to be measured of every band, as far as the ``losses`` that are known decide it.

    All of a band that is small enough. Of a larger one the informed candidates and a draw, half of what is measured,
    and then, by `follow`, what is expected to be best; where other objectives are weighed against the loss, the draw
    alone, for all parts of a front are wanted.
    """
    if plan.settings.sampler != "screen":
        return ()
    return tuple(one for part in plan.parts for one in _of_band(part, losses))


def follow(space: SearchSpace, order: Sequence[Architecture], most: int, losses: Losses) -> tuple[Architecture, ...]:
    """The first half of ``most`` in ``order``, then, in `ROUNDS` rounds, those of which the least loss is expected.

    Expected is what a quadratic response surface says (Box and Wilson 1951), fitted to the losses of those before. A
    round is decided once each of these is in ``losses``, and by nothing else: a search that was interrupted comes to
    the same ones.
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
    """The informed candidates of a band, then all others in an order that ``seed`` draws."""
    ideas = dict.fromkeys(one for _, one in informed(shape, feasible))
    others = [one for one in feasible if one not in ideas]
    return (*ideas, *Random(seed).sample(others, len(others)))


def _of_band(part: Plan, losses: Losses) -> tuple[Architecture, ...]:
    target, most = part.target, part.settings.screened
    if len(target.feasible) <= most:
        return target.feasible
    order = drawn(target.shape, target.feasible, part.settings.seed)
    return order[:most] if len(part.objectives) > 1 else follow(target.space, order, most, losses)


def _expected(
    space: SearchSpace, measured: Mapping[Architecture, float], others: Sequence[Architecture]
) -> NDArray[np.floating]:
    """Losses (n,) of the n ``others``; alike when nothing is ``measured``."""
    if not measured:
        return np.zeros(len(others))
    known, losses = _terms(space, list(measured)), np.array(list(measured.values()))
    gram = known.T @ known + RIDGE * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ (losses - losses.mean()))
    expected: NDArray[np.floating] = losses.mean() + _terms(space, others) @ weights
    return expected


def _terms(space: SearchSpace, some: Sequence[Architecture]) -> NDArray[np.floating]:
    """1, all sizes and all products of two of them (n, terms), sizes scaled to [0, 1]."""
    sizes = np.array([(1.0, *space.position(space.sizes(one))) for one in some])
    pairs = np.triu_indices(sizes.shape[1])
    products: NDArray[np.floating] = sizes[:, pairs[0]] * sizes[:, pairs[1]]
    return products
