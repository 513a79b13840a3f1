"""Spreads MLP neurons over layers by their value, at the parameter count of a uniform architecture."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

LEAST = 0.25  # every layer keeps this share of the teacher's neurons, or the uniform number if that is smaller
PIECES = 16  # neurons are given out in pieces of 1/16 of a teacher's layer, or smaller ones where that does not divide


@dataclass(frozen=True)
class NeuronValues:
    """The values of a teacher's layers and MLP neurons; higher is better.

    ``layers`` (L,) decides which layers stay. ``mlp`` (L, neurons) descends within each layer. Its values can be
    compared between layers.
    """

    layers: tuple[float, ...]
    mlp: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, layers: Sequence[float], mlp: Sequence[Sequence[float]]) -> NeuronValues:
        """Values from ``mlp`` (L, neurons) in any order within a layer."""
        ordered = tuple(tuple(sorted(map(float, row), reverse=True)) for row in mlp)
        return cls(tuple(map(float, layers)), ordered)

    def kept(self, depth: int) -> list[int]:
        """The numbers of the ``depth`` layers that stay, ascending. Of layers with equal values, the earlier stays."""
        return sorted(sorted(range(len(self.layers)), key=lambda layer: -self.layers[layer])[:depth])


def allocated(uniform: Architecture, values: NeuronValues, multiple: int = 1) -> Architecture:
    """``uniform`` with the same total number of neurons, moved to the layers where they are worth most.

    Each layer keeps at least `LEAST` of the teacher's neurons, and the heads of ``uniform``. Heads are not spread,
    because students with spread heads were worse (docs/lab/sizes-by-layer.md). The neurons of each layer are a
    ``multiple``, if those of ``uniform`` are.

    Raises InputError when ``uniform`` is not uniform.
    """
    if not uniform.is_uniform:
        raise InputError(f"architecture {uniform.key}: its layers differ already; give one with equal layers")
    rows = [values.mlp[layer] for layer in uniform.kept_layers or values.kept(uniform.depth)]
    neurons, most = uniform.mlp[0] // multiple, len(rows[0]) // multiple
    size = multiple * gcd(neurons, most, max(1, most // PIECES))
    return replace(uniform, mlp=spread([row[: most * multiple] for row in rows], neurons * multiple, size))


def spread(rows: Sequence[Sequence[float]], each: int, size: int) -> tuple[int, ...]:
    """How many units each layer keeps, so that the total value is highest.

    ``rows`` holds the descending unit values of each layer. Layers keep ``each`` units on average, in pieces of
    ``size`` units. Each piece goes to the layer whose next piece is worth most. This greedy choice is exact, because
    the values within a layer descend.
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
