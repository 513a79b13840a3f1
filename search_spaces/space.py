"""The axes of a search and the architectures that lie inside a budget band."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.shape import ModelShape

AXES = ("depth", "hidden", "heads", "kv_heads", "mlp")


@dataclass(frozen=True)
class SearchSpace:
    """All uniform architectures of a grid: one tuple of sizes, ascending, for each axis.

    ``kv_heads`` is empty for a teacher in which every head has its own key and value; for one with grouped-query
    attention, heads and kv_heads combine where groups stay whole (see `head_pairs`). ``stock_only`` keeps the
    architectures that load with a plain ``from_pretrained`` (see `ModelShape.is_stock`).
    """

    shape: ModelShape
    depth: tuple[int, ...]
    hidden: tuple[int, ...]
    heads: tuple[int, ...]
    mlp: tuple[int, ...]
    kv_heads: tuple[int, ...] = ()
    stock_only: bool = field(default=False, kw_only=True)

    @property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of each axis by its name."""
        return {name: getattr(self, name) for name in AXES if getattr(self, name)}

    @property
    def head_pairs(self) -> tuple[tuple[int, int], ...]:
        """The legal (heads, key/value heads): every key/value head keeps as many heads, at most the teacher's."""
        if not self.kv_heads:
            return tuple((heads, heads) for heads in self.heads)
        pairs = product(self.heads, self.kv_heads)
        return tuple((heads, kv) for heads, kv in pairs if heads % kv == 0 and heads // kv <= self.shape.group)

    def sizes(self, architecture: Architecture) -> dict[str, int]:
        """The sizes of a uniform architecture, by axis."""
        values = {"depth": architecture.depth, "hidden": architecture.hidden, "heads": architecture.heads[0]}
        values |= {"kv_heads": architecture.kv_heads[0], "mlp": architecture.mlp[0]}
        return {axis: values[axis] for axis in self.axes}

    def __iter__(self) -> Iterator[Architecture]:
        for depth, hidden, (heads, kv_heads), mlp in product(self.depth, self.hidden, self.head_pairs, self.mlp):
            architecture = Architecture.uniform(depth, hidden, heads, mlp, kv_heads)
            if not self.stock_only or self.shape.is_stock(architecture):
                yield architecture

    def feasible(self, budget: Budget) -> Iterator[Architecture]:
        """The architectures inside the band, lazily, in grid order."""
        return (one for one in self if self.shape.parameters(one) in budget)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The distinct parameter counts of the whole space, ascending."""
        return tuple(sorted({self.shape.parameters(one) for one in self}))
