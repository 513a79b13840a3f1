"""What a program that serves or quantises students asks of their sizes, and spaces narrowed to what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.shape import ModelShape, Width
from search_spaces.space import SearchSpace
from search_spaces.stored_size import distinct_matrices


@dataclass(frozen=True)
class Requirement:
    """What one program or number format asks of a student. The defaults ask for nothing.

    - ``name`` is what the user typed, for messages.
    - The inputs and the outputs of every matrix in the layers are multiples of ``inputs`` and ``outputs``.
    - ``equal_layers``: all layers have the same sizes.
    - ``width`` says how the width must fit the heads, where all layers have the same sizes.
    - ``unquantized``: its weights are plain numbers.
    """

    name: str
    inputs: int = 1
    outputs: int = 1
    equal_layers: bool = False
    width: Width = "any"
    unquantized: bool = False

    def allows(self, shape: ModelShape, architecture: Architecture) -> bool:
        """Whether ``architecture``, cut from a teacher of ``shape``, meets the requirement."""
        if self.equal_layers and not architecture.is_uniform:
            return False
        if self.unquantized and architecture.compression.quantization.scheme != "none":
            return False
        if architecture.is_uniform and not shape.has_width(self.width, architecture.hidden, architecture.heads[0]):
            return False
        return self._divides(shape, architecture)

    def _divides(self, shape: ModelShape, architecture: Architecture) -> bool:
        if self.inputs == self.outputs == 1:
            return True
        sizes = distinct_matrices(shape, architecture)
        return not any(one.inputs % self.inputs or one.outputs % self.outputs for one in sizes)


def narrowed(space: SearchSpace, requirements: Sequence[Requirement]) -> SearchSpace:
    """The architectures of ``space`` that meet all ``requirements``.

    Sizes that no requirement allows leave their axis. Raises InputError when an axis has no value left. The message
    names the axis, the rule and the nearest size that fits.
    """
    if not requirements:
        return space
    for axis, unit, outputs_only in _axes(space.shape):
        kept: dict[str, Any] = {axis: _multiples(space, requirements, axis, unit, outputs_only)}
        space = replace(space, **kept)
    _check_heads(space, requirements)
    space = replace(space, **_plain_axes(space, requirements), requirements=tuple(requirements))
    stock = [Requirement("stock_only", width=space.shape.stock)] if space.stock_only else []
    for one in [*requirements, *stock]:
        _check_width(space, one)
    multiple = lcm(space.mlp_multiple, *(lcm(one.inputs, one.outputs) for one in requirements))
    space = replace(space, mlp_multiple=multiple)
    if not space.counts:
        names = " and ".join(one.name for one in requirements)
        raise InputError(f"{names}: no architecture of the space fits all of this; leave one out, or give other sizes")
    return space


def _axes(shape: ModelShape) -> list[tuple[str, int, bool]]:
    """Each axis of sizes, how many channels a unit of it has, and whether these are outputs of a matrix only."""
    return [
        ("hidden", 1, False),
        ("heads", shape.head_dim, False),
        ("kv_heads", shape.head_dim, True),
        ("mlp", 1, False),
    ]


def _multiples(
    space: SearchSpace, requirements: Sequence[Requirement], axis: str, unit: int, outputs_only: bool
) -> tuple[int, ...]:
    """The sizes of ``axis`` whose channels are a multiple of what the requirements ask."""
    asked = {one.name: one.outputs if outputs_only else lcm(one.inputs, one.outputs) for one in requirements}
    multiple = lcm(*asked.values())
    sizes: tuple[int, ...] = getattr(space, axis)
    kept = tuple(one for one in sizes if one * unit % multiple == 0)
    if sizes and not kept:
        names = " and ".join(name for name, number in asked.items() if number > 1)
        step = lcm(multiple, unit) // unit
        channels = f"{axis} * {unit}" if unit > 1 else axis
        raise InputError(
            f"{names}: no value of {axis} is left: {channels} must be a multiple of {multiple}, and the space has "
            f"{_listed(sizes)}; {_nearest(sizes, step, getattr(space.shape, axis))}"
        )
    return kept


def _nearest(sizes: tuple[int, ...], step: int, teacher: int) -> str:
    """The multiple of ``step`` that is nearest to one of ``sizes``, of those up to the ``teacher``'s size."""
    options = range(step, teacher + 1, step)
    if not options:
        return f"no size up to the teacher's {teacher} fits, so leave it out"
    return f"the nearest that fits is {min(options, key=lambda one: min(abs(one - size) for size in sizes))}"


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) if len(sizes) < 10 else f"{sizes[0]}, {sizes[1]}, ... {sizes[-1]}"


def _check_heads(space: SearchSpace, requirements: Sequence[Requirement]) -> None:
    if not space.head_pairs:
        raise InputError(
            f"{' and '.join(one.name for one in requirements)}: no pair of heads and kv_heads is left: heads "
            f"{_listed(space.heads)} of the teacher's {space.shape.heads} on kv_heads {_listed(space.kv_heads)}; the "
            f"nearest that fits is {space.heads[-1]} heads on as many kv_heads as divide them, at most "
            f"{space.shape.group} times fewer"
        )


def _plain_axes(space: SearchSpace, requirements: Sequence[Requirement]) -> dict[str, Any]:
    """The axes ``allocated`` and ``quantization``, without what a requirement rules out."""
    found: dict[str, Any] = {}
    for one in requirements:
        if one.equal_layers and space.allocated:
            if 0 not in space.allocated:
                raise InputError(
                    f"{one.name}: no value of allocated is left: a {space.shape.family} must have equal layers there; "
                    "the nearest that fits is allocated: [false]"
                )
            found["allocated"] = ()
        if one.unquantized and space.quantization:
            left = tuple(each for each in space.quantization if each.scheme == "none")
            if not left:
                raise InputError(
                    f"{one.name}: no value of quantization is left: it reads plain weights; the nearest that fits is "
                    "quantization: [none]"
                )
            found["quantization"] = left
    return found


def _check_width(space: SearchSpace, one: Requirement) -> None:
    """Raise InputError when no width of the space fits any of its numbers of heads."""
    shape = space.shape
    if 1 in space.allocated or any(
        shape.has_width(one.width, hidden, heads) for hidden in space.hidden for heads in space.heads
    ):
        return
    unit = {"square": shape.head_dim, "divisible": 1}[one.width]
    options = [
        (min(abs(hidden - size) for size in space.hidden), hidden, heads)
        for heads in space.heads
        for hidden in range(heads * unit, shape.hidden + 1, heads * unit)
        if shape.has_width(one.width, hidden, heads)
    ]
    rule = f"heads * {unit}" if one.width == "square" else "a multiple of heads"
    nearest = "the nearest that fits is hidden {1} with {2} heads".format(*min(options)) if options else "leave it out"
    raise InputError(
        f"{one.name}: no value of hidden is left: a {shape.family} must have hidden equal to {rule} there, and the "
        f"space has {_listed(space.hidden)} with heads {_listed(space.heads)}; {nearest}"
    )
