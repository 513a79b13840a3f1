"""The axes of a space file that say what may be done to the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from search_spaces.compression import Adapters, Compression, Quantization, Sparsity
from search_spaces.errors import InputError
from search_spaces.space import COMPRESSIONS, SearchSpace
from search_spaces.stored_size import NF4_OUTPUTS

NONE = {"sparsity": Sparsity(), "quantization": Quantization(), "adapters": Adapters()}
FORMS = {
    "sparsity": "a level such as 0.5, the text '2:4', or a mapping such as {level: 0.5, method: wanda}",
    "quantization": "none, a scheme such as nf4, or a mapping such as {scheme: nf4, double: false}",
    "adapters": "none, or a mapping such as {rank: 8, alpha: 16}",
}


def compression_axes(name: str, given: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The values of each axis that the space ``name`` has, in the order of its file.

    A sparsity is a level, ``"2:4"`` or a mapping; a quantization is ``none``, a scheme or a mapping; adapters are
    ``none`` or a mapping. The fields of a mapping are those of `search_spaces.compression`.

    Raises InputError naming the space, the axis and the field.
    """
    return {axis: _values(name, axis, given[axis]) for axis in COMPRESSIONS if given[axis] is not None}


def _values(name: str, axis: str, given: Sequence[Any]) -> tuple[Any, ...]:
    if not given:
        raise InputError(f"space {name}: key {axis!r}: give at least one value, or leave the key out")
    values = [_value(name, axis, one) for one in given]
    if len(set(values)) < len(values):
        twice = next(one for one in values if values.count(one) > 1)
        raise InputError(f"space {name}: key {axis!r}: {twice.key or 'none'} is there twice; give each value once")
    return tuple(values)


def _value(name: str, axis: str, given: Any) -> Any:
    if given in ("none", 0) and not isinstance(given, bool):
        return NONE[axis]
    try:
        return getattr(Compression.from_dict({axis: _mapping(axis, given)}), axis)
    except InputError as error:
        raise InputError(f"space {name}: {error}") from error


def _mapping(axis: str, given: Any) -> Mapping[str, Any]:
    """The mapping that the short form ``given`` stands for. Raises InputError when it stands for none."""
    if isinstance(given, Mapping):
        return given
    if axis == "sparsity" and given == "2:4":
        return {"level": 0.5, "kind": "2:4"}
    if axis == "sparsity" and isinstance(given, int | float) and not isinstance(given, bool):
        return {"level": given}
    if axis == "quantization" and isinstance(given, str):
        return {"scheme": given}
    text = repr(given)
    raise InputError(f"{axis}: {text if len(text) <= 80 else text[:77] + '...'} is not {FORMS[axis]}")


def possible(name: str, space: SearchSpace, *, preset: bool) -> SearchSpace:
    """``space`` without the quantizations that none of its architectures can have.

    A ``preset`` is for every teacher, so it does without them. Raises InputError for a space that a user wrote.
    """
    left = [one for one in space.quantization if not space.allows(one)]
    if left and not preset:
        sizes = f"outputs that are a multiple of {NF4_OUTPUTS}, and inputs that are one of {left[0].group}"
        rule = sizes if left[0].scheme == "nf4" else f"rows of outputs, which {space.shape.family} does not have"
        raise InputError(
            f"space {name}: key 'quantization': {left[0].key} needs matrices with {rule}; no architecture has them; "
            "leave it out, or give other sizes"
        )
    return replace(space, quantization=tuple(one for one in space.quantization if one not in left)) if left else space


def check_two_of_four(name: str, space: SearchSpace) -> None:
    """Raise InputError when ``space`` has 2:4 sparsity and a matrix whose inputs are no multiple of 4."""
    if all(one.kind != "2:4" for one in space.sparsity):
        return
    heads = tuple(heads * space.shape.head_dim for heads in space.heads)
    for axis, sizes in {"hidden": space.hidden, "heads": heads, "mlp": space.mlp}.items():
        if odd := [size for size in sizes if size % 4]:
            raise InputError(
                f"space {name}: key 'sparsity': 2:4 needs inputs that are a multiple of 4, and {axis} has matrices of "
                f"{odd[0]}; leave that size or 2:4 out"
            )
