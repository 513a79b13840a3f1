"""Heads and neurons given to the layers where they are worth most, with the parameters of a uniform architecture."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

LEAST = 0.25  # of the teacher's heads and neurons stay in every layer, or as many as uniform layers would have
PIECES = 16  # of a layer's neurons are given away at a time, or fewer where that does not go up

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Worth:
    """What the units of a teacher are worth; higher is more, also between layers.

    ``layers`` (L,) decide which layers stay. ``heads`` (L, kv_heads), those on one key/value head together, and ``mlp``
    (L, neurons) are descending in each layer.
    """

    layers: tuple[float, ...]
    heads: Rows
    mlp: Rows

    @classmethod
    def of(cls, layers: Sequence[float], heads: Sequence[Sequence[float]], mlp: Sequence[Sequence[float]]) -> Worth:
        """From scores in any order within a layer."""
        ordered = (tuple(tuple(sorted(map(float, row), reverse=True)) for row in rows) for rows in (heads, mlp))
        return cls(tuple(map(float, layers)), *ordered)

    def kept(self, depth: int) -> list[int]:
        """The ``depth`` layers that stay, ascending; of equal ones the earlier."""
        return sorted(sorted(range(len(self.layers)), key=lambda layer: -self.layers[layer])[:depth])


def allocated(uniform: Architecture, worth: Worth) -> Architecture:
    """``uniform`` with its heads and neurons, as many in all, in the layers where they are worth most.

    Each layer keeps at least `LEAST` of the teacher's. Heads go with their key/value head, as many of a group as
    ``uniform`` has. The most that can be kept in all: pieces are given one after the other to the layer whose next best
    piece is worth most, which is exact, for no later piece of a layer is worth more.

    Raises InputError when ``uniform`` is not uniform.
    """
    if not uniform.is_uniform:
        raise InputError(f"architecture {uniform.key}: its layers differ already; give one with equal layers")
    layers = worth.kept(uniform.depth)
    neurons, kv_heads, group = uniform.mlp[0], uniform.kv_heads[0], uniform.heads[0] // uniform.kv_heads[0]
    rows = [worth.mlp[layer] for layer in layers]
    size = gcd(neurons, len(rows[0]), max(1, len(rows[0]) // PIECES))
    spread = replace(uniform, mlp=_spread(rows, neurons, size))
    groups = [worth.heads[layer] for layer in layers]
    shared = _spread(groups, kv_heads, 1)
    return replace(spread, heads=tuple(group * count for count in shared), kv_heads=shared)


def _spread(rows: Sequence[Sequence[float]], each: int, size: int) -> tuple[int, ...]:
    """How many units of each of ``rows`` (descending) stay, in pieces of ``size``, ``each`` on average."""
    least = min(each, max(size, round(LEAST * len(rows[0])))) // size
    counts = [least] * len(rows)

    def worth(place: int) -> float:
        start = counts[place] * size
        return sum(rows[place][start : start + size])

    heap = [(-worth(place), place) for place in range(len(rows))]
    heapq.heapify(heap)
    for _ in range(len(rows) * (each // size - least)):
        _, place = heapq.heappop(heap)
        counts[place] += 1
        if counts[place] * size < len(rows[place]):
            heapq.heappush(heap, (-worth(place), place))
    return tuple(count * size for count in counts)
