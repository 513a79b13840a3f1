"""The axes of a search and the architectures that lie inside a budget band."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.shape import ModelShape

AXES = ("depth", "hidden", "heads", "mlp")


@dataclass(frozen=True)
class SearchSpace:
    """All uniform architectures of a grid: one tuple of sizes, ascending, for each axis.

    ``stock_only`` keeps the ones that load with a plain ``from_pretrained`` (see `ModelShape.is_stock`).
    """

    shape: ModelShape
    depth: tuple[int, ...]
    hidden: tuple[int, ...]
    heads: tuple[int, ...]
    mlp: tuple[int, ...]
    stock_only: bool = False

    @property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of each axis by its name."""
        return {name: getattr(self, name) for name in AXES}

    def __iter__(self) -> Iterator[Architecture]:
        for sizes in product(self.depth, self.hidden, self.heads, self.mlp):
            architecture = Architecture.uniform(*sizes)
            if not self.stock_only or self.shape.is_stock(architecture):
                yield architecture

    def feasible(self, budget: Budget) -> Iterator[Architecture]:
        """The architectures inside the band, lazily, in grid order."""
        return (one for one in self if self.shape.parameters(one) in budget)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The distinct parameter counts of the whole space, ascending."""
        return tuple(sorted({self.shape.parameters(one) for one in self}))
