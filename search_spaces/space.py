"""The axes of a search space and the architectures inside a budget band."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from search_spaces.allocation import NeuronValues, allocated
from search_spaces.architecture import Architecture
from search_spaces.budget import PARAMETERS, Budget
from search_spaces.compression import NOTHING, Adapters, Compression, Quantization, Sparsity
from search_spaces.shape import ModelShape
from search_spaces.stored_size import fits, runs_everywhere, size_in

if TYPE_CHECKING:
    from search_spaces.requirements import Requirement

AXES = ("depth", "hidden", "heads", "kv_heads", "mlp")
ALLOCATED, LAYERS = "allocated", "kept_layers"
COMPRESSIONS = ("sparsity", "quantization", "adapters")


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of a grid. Each axis is a tuple of ascending sizes.

    ``kv_heads`` is empty when every head of the teacher has its own key/value head. With grouped-query attention,
    only the pairs of heads and kv_heads in `head_pairs` are used. ``stock_only`` keeps the architectures that load
    with a plain ``from_pretrained`` (see `ModelShape.is_stock`). ``requirements`` keep those that meet all of them
    (`search_spaces.requirements.narrowed`).

    Layers have equal sizes, unless the axis ``allocated`` contains 1. Then ``mlp`` is the average over layers, and
    neurons go to the layers where they are worth most (`search_spaces.allocation`). Each layer gets a multiple of
    ``mlp_multiple``. This needs ``neuron_values``, which are computed from calibration text. Before they are known,
    iteration yields the uniform architectures instead, which have the same parameter counts.

    ``kept_layers`` are choices of layers, each a number whose bit i says whether the teacher's layer i stays. If the
    axis is there, an architecture names its layers: every choice of as many layers as its depth. An architecture of
    all layers names none, and its choice is 0. Without the axis, the importance scores choose.

    ``sparsity``, ``quantization`` and ``adapters`` are what may be done to the weights. On these axes, a size is the
    place of a value.
    """

    shape: ModelShape
    depth: tuple[int, ...]
    hidden: tuple[int, ...]
    heads: tuple[int, ...]
    mlp: tuple[int, ...]
    kv_heads: tuple[int, ...] = ()
    stock_only: bool = field(default=False, kw_only=True)
    requirements: tuple[Requirement, ...] = field(default=(), kw_only=True)
    mlp_multiple: int = field(default=1, kw_only=True)
    allocated: tuple[int, ...] = field(default=(), kw_only=True)
    neuron_values: NeuronValues | None = field(default=None, kw_only=True, repr=False)
    kept_layers: tuple[int, ...] = field(default=(), kw_only=True, repr=False)
    sparsity: tuple[Sparsity, ...] = field(default=(), kw_only=True)
    quantization: tuple[Quantization, ...] = field(default=(), kw_only=True)
    adapters: tuple[Adapters, ...] = field(default=(), kw_only=True)

    @property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of each axis, by name."""
        sizes = {name: getattr(self, name) for name in (*AXES, ALLOCATED, LAYERS) if getattr(self, name)}
        places = {name: tuple(range(len(getattr(self, name)))) for name in COMPRESSIONS if getattr(self, name)}
        return sizes | places

    def to_dict(self) -> dict[str, Any]:
        """JSON form of the axes. Values that are no sizes are under ``compression``, in the order of their places."""
        axes: dict[str, Any] = {axis: list(sizes) for axis, sizes in self.axes.items()}
        names = {name: [one.key or "none" for one in getattr(self, name)] for name in COMPRESSIONS if name in axes}
        pieces = {"mlp_multiple": self.mlp_multiple} if 1 in self.allocated and self.mlp_multiple > 1 else {}
        return axes | pieces | ({"compression": names} if names else {})

    @property
    def head_pairs(self) -> tuple[tuple[int, int], ...]:
        """The legal pairs (heads, key/value heads): heads is a multiple, and a group is at most the teacher's."""
        if not self.kv_heads:
            return tuple((heads, heads) for heads in self.heads)
        pairs = product(self.heads, self.kv_heads)
        return tuple((heads, kv) for heads, kv in pairs if heads % kv == 0 and heads // kv <= self.shape.group)

    def sizes(self, architecture: Architecture) -> dict[str, int]:
        """The sizes of an architecture of this space, by axis. ``mlp`` is the average over layers."""
        values = {name: sum(getattr(architecture, name)) // architecture.depth for name in ("heads", "kv_heads", "mlp")}
        values |= {"depth": architecture.depth, "hidden": architecture.hidden}
        values[ALLOCATED] = self.allocated[0] if len(self.allocated) == 1 else int(not architecture.is_uniform)
        values[LAYERS] = sum(1 << layer for layer in architecture.kept_layers)
        for axis in COMPRESSIONS:
            if found := getattr(self, axis):
                values[axis] = found.index(getattr(architecture.compression, axis))
        return {axis: values[axis] for axis in self.axes}

    def architecture(self, sizes: Mapping[str, int]) -> Architecture:
        """The inverse of `sizes`. Raises ValueError when it needs neuron values that are not known yet."""
        values = {axis: int(size) for axis, size in sizes.items()}
        spread, choice = values.pop(ALLOCATED, 0), values.pop(LAYERS, 0)
        done: dict[str, Any] = {axis: getattr(self, axis)[values.pop(axis)] for axis in COMPRESSIONS if axis in values}
        uniform = Architecture.uniform(**values)
        uniform = replace(uniform, kept_layers=_layers(choice), compression=Compression(**done))
        if not spread:
            return uniform
        if self.neuron_values is None:
            raise ValueError(f"architecture {sizes}: the values of the teacher's neurons are not known yet")
        return allocated(uniform, self.neuron_values, self.mlp_multiple)

    def position(self, sizes: Mapping[str, int]) -> list[float]:
        """The coordinates of ``sizes``: each axis scaled to [0, 1], and for each layer whether it stays, 0 or 1."""
        axes = {axis: values for axis, values in self.axes.items() if axis != LAYERS}
        scaled = [_scaled(sizes[axis], values[0], values[-1]) for axis, values in axes.items()]
        if not self.kept_layers:
            return scaled
        kept = sizes[LAYERS] or (1 << self.shape.layers) - 1
        return [*scaled, *(float(kept >> layer & 1) for layer in range(self.shape.layers))]

    def __iter__(self) -> Iterator[Architecture]:
        for uniform in self._uniform():
            yield from self._varied(uniform)

    def _varied(self, uniform: Architecture) -> Iterator[Architecture]:
        """The architectures of the space with the sizes of ``uniform``: layers named, compressed, and spread."""
        choices = self._choices[uniform.depth] if self.kept_layers else [0]
        for choice, done in product(choices, self._compressions_of(uniform)):
            changed = choice or done
            one = replace(uniform, kept_layers=_layers(choice), compression=done) if changed else uniform
            yield from (each for each in self._spread(one) if self._meets_all(each))

    def allows(self, quantization: Quantization) -> bool:
        """Whether any architecture of the space can have ``quantization`` (`runs_everywhere`)."""
        done = Compression(quantization=quantization)
        return any(runs_everywhere(self.shape, replace(one, compression=done)) for one in self._uniform())

    def _compressions_of(self, uniform: Architecture) -> list[Compression]:
        """What may be done to the weights of ``uniform``, without quantizations that do not run on a CPU."""
        return [one for one in self._compressions if runs_everywhere(self.shape, replace(uniform, compression=one))]

    @cached_property
    def _compressions(self) -> tuple[Compression, ...]:
        """Everything that may be done to the weights. Adapters are not combined with what they would undo."""
        values = [getattr(self, axis) or (getattr(NOTHING, axis),) for axis in COMPRESSIONS]
        every = (Compression(*one) for one in product(*values))
        return tuple(one for one in every if one.mergeable)

    @cached_property
    def _choices(self) -> dict[int, list[int]]:
        """The choices of layers, by depth."""
        found: dict[int, list[int]] = {depth: [] for depth in self.depth}
        for choice in self.kept_layers:
            found.setdefault(choice.bit_count() or self.shape.layers, []).append(choice)
        return found

    def _uniform(self) -> Iterator[Architecture]:
        for depth, hidden, (heads, kv_heads), mlp in product(self.depth, self.hidden, self.head_pairs, self.mlp):
            uniform = Architecture.uniform(depth, hidden, heads, mlp, kv_heads)
            if (not self.stock_only or self.shape.is_stock(uniform)) and self._meets_all(uniform):
                yield uniform

    def _meets_all(self, architecture: Architecture) -> bool:
        return all(one.allows(self.shape, architecture) for one in self.requirements)

    def _spread(self, uniform: Architecture) -> Iterator[Architecture]:
        """The architectures of the space with these average sizes, each once."""
        if self.neuron_values is None or 0 in (self.allocated or (0,)):
            yield uniform
        if self.neuron_values is not None and 1 in self.allocated:
            other = allocated(uniform, self.neuron_values, self.mlp_multiple)
            if other != uniform or 0 not in self.allocated:
                yield other

    def feasible(self, budget: Budget) -> Iterator[Architecture]:
        """Yields the architectures inside the band, in grid order."""
        for uniform in self._uniform():
            if budget.unit != PARAMETERS:
                yield from (one for one in self._varied(uniform) if fits(budget, self.shape, one))
            elif fits(budget, self.shape, uniform):
                yield from self._varied(uniform)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The distinct parameter counts in the whole space, ascending."""
        return self.counts_in(PARAMETERS)

    def counts_in(self, unit: str) -> tuple[int, ...]:
        """The distinct sizes in the whole space in the ``unit`` of a budget, ascending."""
        every: Iterable[Architecture] = self._uniform()
        if unit != PARAMETERS:
            every = (replace(one, compression=each) for one in every for each in self._compressions_of(one))
        return tuple(sorted({size_in(unit, self.shape, one) for one in every}))


def _layers(choice: int) -> tuple[int, ...]:
    """The layers of a choice, which is a number with a bit for each."""
    return tuple(layer for layer in range(choice.bit_length()) if choice >> layer & 1)


def _scaled(size: int, smallest: int, largest: int) -> float:
    return (size - smallest) / (largest - smallest) if largest > smallest else 0.0
