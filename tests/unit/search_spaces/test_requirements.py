"""Requirements: which sizes stay in a narrowed space, and what is said when none does."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_space import MEDIUM, SMALL, SMOL

from search_spaces.allocation import NeuronValues
from search_spaces.budget import parse_budget
from search_spaces.compression import Quantization
from search_spaces.errors import InputError
from search_spaces.files import load_space
from search_spaces.requirements import Requirement, narrowed
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.stored_size import matrix_sizes

SHAPES = {"medium": MEDIUM, "small": SMALL, "smol": SMOL}


def values(shape: ModelShape) -> NeuronValues:
    draw = Random(0)
    rows = [[draw.random() * 4**layer for _ in range(shape.mlp)] for layer in range(shape.layers)]
    return NeuronValues.of(range(shape.layers), rows)


@st.composite
def demands(draw: st.DrawFn) -> Requirement:
    multiples = st.sampled_from((1, 8, 32, 64))
    equal, width = draw(st.booleans()), draw(st.sampled_from(("any", "any", "square", "divisible")))
    return Requirement("this", draw(multiples), draw(multiples), equal, width, draw(st.booleans()))


@given(st.sampled_from(sorted(SHAPES)), st.lists(demands(), max_size=2), st.booleans())
def test_a_narrowed_space_has_just_the_architectures_that_meet_every_requirement(
    name: str, asked: list[Requirement], compressed: bool
) -> None:
    shape = SHAPES[name]
    whole = replace(load_space("default", shape), depth=(shape.layers // 2, shape.layers))
    if compressed:
        whole = replace(whole, quantization=(Quantization(), Quantization("int8")))
    expected = {one for one in whole if all(each.allows(shape, one) for each in asked)}
    try:
        found = narrowed(whole, asked)
    except InputError:
        assert not expected
        return
    assert set(found) == expected
    for axis, sizes in found.axes.items():
        assert set(sizes) <= set(whole.axes[axis])


@pytest.mark.parametrize(
    ("multiple", "name"), [*((one, name) for one in (8, 32, 64) for name in SHAPES), (256, "small"), (256, "medium")]
)
def test_no_matrix_of_a_layer_breaks_a_multiple_and_layers_may_differ(multiple: int, name: str) -> None:
    shape = SHAPES[name]
    whole = replace(load_space("default", shape), depth=(shape.layers // 2,), allocated=(1,))
    whole = replace(whole, neuron_values=values(shape))
    found = list(narrowed(whole, [Requirement("this", inputs=multiple)]))
    assert any(not one.is_uniform for one in found)
    assert all(size.inputs % multiple == 0 for one in found for size in matrix_sizes(shape, one))


def test_every_proposal_of_a_band_meets_the_requirement_and_the_nearest_budget_does() -> None:
    space = narrowed(load_space("default", SMALL), [Requirement("this", inputs=64)])
    total = SMALL.parameters(SMALL.full)
    inside = list(space.feasible(parse_budget("60%", total, space.counts)))
    assert inside
    assert all(size.inputs % 64 == 0 for one in inside for size in matrix_sizes(SMALL, one))
    with pytest.raises(InputError, match=f"nearest feasible budget is {space.counts[0]} "):
        parse_budget("10%", total, space.counts)


def space_with(shape: ModelShape = SMALL, **axes: Any) -> SearchSpace:
    return replace(load_space("default", shape), **axes)


@pytest.mark.parametrize(
    ("axes", "requirement", "said"),
    [
        ({"hidden": (200, 240)}, {"inputs": 64}, "no value of hidden is left.*multiple of 64.*200, 240.*fits is 192"),
        ({"heads": (5, 7)}, {"inputs": 64}, r"no value of heads is left: heads \* 32.*fits is (4|6|8)"),
        ({"mlp": (1000,)}, {"inputs": 256}, "no value of mlp is left.*fits is 1024"),
        ({"mlp": (1000,)}, {"inputs": 4096}, "no value of .* is left.*no size up to the teacher's .* fits"),
        ({"allocated": (1,)}, {"equal_layers": True}, r"no value of allocated.*allocated: \[false\]"),
        ({"quantization": (Quantization("int8"),)}, {"unquantized": True}, r"no value of quantization.*\[none\]"),
        ({"hidden": (200,), "heads": (5, 6)}, {"width": "square"}, "no value of hidden.*is hidden 192 with 6 heads"),
    ],
)
def test_an_axis_without_a_value_is_named_with_the_nearest_that_fits(
    axes: dict[str, object], requirement: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=f"^--this that: {said}") as caught:
        narrowed(space_with(**axes), [Requirement("--this that", **requirement)])
    assert "\n" not in str(caught.value)


def test_heads_that_fit_no_key_value_heads_are_named() -> None:
    space = space_with(SMOL, heads=(8,), kv_heads=(3,))
    with pytest.raises(InputError, match="no pair of heads and kv_heads is left"):
        narrowed(space, [Requirement("--this", inputs=64)])
