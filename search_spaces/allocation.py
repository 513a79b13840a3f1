"""Neurons given to the layers where they are worth most, with the parameters of a uniform architecture."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

LEAST = 0.25  # of the teacher's neurons stay in every layer, or as many as uniform layers would have
PIECES = 16  # of a layer's neurons are given away at a time, or fewer where that does not go up


@dataclass(frozen=True)
class NeuronValues:
    """What the MLP neurons of a teacher are worth; higher is more, also between layers.

    ``layers`` (L,) decide which layers stay. ``mlp`` (L, neurons) are descending in each layer.
    """

    layers: tuple[float, ...]
    mlp: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, layers: Sequence[float], mlp: Sequence[Sequence[float]]) -> NeuronValues:
        """From values in any order within a layer."""
        ordered = tuple(tuple(sorted(map(float, row), reverse=True)) for row in mlp)
        return cls(tuple(map(float, layers)), ordered)

    def kept(self, depth: int) -> list[int]:
        """The ``depth`` layers that stay, ascending; of equal ones the earlier."""
        return sorted(sorted(range(len(self.layers)), key=lambda layer: -self.layers[layer])[:depth])


def allocated(uniform: Architecture, values: NeuronValues) -> Architecture:
    """``uniform`` with its neurons, as many in all, in the layers where they are worth most.

    Each layer keeps at least `LEAST` of the teacher's, and as many heads as in ``uniform``: spread like neurons, they
    leave worse students (docs/results.md, "Sizes by layer"). Raises InputError when ``uniform`` is not uniform.
    """
    if not uniform.is_uniform:
        raise InputError(f"architecture {uniform.key}: its layers differ already; give one with equal layers")
    rows = [values.mlp[layer] for layer in values.kept(uniform.depth)]
    neurons = uniform.mlp[0]
    size = gcd(neurons, len(rows[0]), max(1, len(rows[0]) // PIECES))
    return replace(uniform, mlp=spread(rows, neurons, size))


def spread(rows: Sequence[Sequence[float]], each: int, size: int) -> tuple[int, ...]:
    """How many units of each of ``rows`` (descending) stay, in pieces of ``size``, ``each`` on average.

    The most that can be kept in all: pieces are given one after the other to the layer whose next best piece is worth
    most, which is exact, for no later piece of a layer is worth more.
    """
    least = min(each, max(size, round(LEAST * len(rows[0])))) // size
    counts = [least] * len(rows)

    def value(place: int) -> float:
        start = counts[place] * size
        return sum(rows[place][start : start + size])

    heap = [(-value(place), place) for place in range(len(rows))]
    heapq.heapify(heap)
    for _ in range(len(rows) * (each // size - least)):
        _, place = heapq.heappop(heap)
        counts[place] += 1
        if counts[place] * size < len(rows[place]):
            heapq.heappush(heap, (-value(place), place))
    return tuple(count * size for count in counts)
