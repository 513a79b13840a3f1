"""Sizes by layer: the same parameters, the minimum per layer, and the best way to spread neurons."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import fsum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_space import SMALL, SMOL

from nas.planning.candidates import baselines, informed
from search_spaces.allocation import LEAST, NeuronValues, allocated
from search_spaces.architecture import Architecture
from search_spaces.budget import parse_budget
from search_spaces.errors import InputError
from search_spaces.files import load_space
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace

SHAPES = {"gpt2": SMALL, "llama": SMOL}


def values_of(draw: st.DrawFn, shape: ModelShape) -> NeuronValues:
    """Arbitrary scores, including equal ones and zeros."""
    score = st.sampled_from((0.0, 0.25, 0.5, 1.0, 3.0, 100.0))
    layers = draw(st.lists(score, min_size=shape.layers, max_size=shape.layers))
    seeds = [draw(st.integers(1, 97)) for _ in layers]
    mlp = [[(place * seed % 101) / seed for place in range(shape.mlp)] for seed in seeds]
    return NeuronValues.of(layers, mlp)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelShape, SearchSpace, NeuronValues]:
    shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    space = load_space(draw(st.sampled_from(("default", "width"))), shape)
    return shape, space, values_of(draw, shape)


@given(cases(), st.data())
def test_an_allocated_architecture_costs_what_the_uniform_one_does(
    case: tuple[ModelShape, SearchSpace, NeuronValues], data: st.DataObject
) -> None:
    shape, space, neuron_values = case
    depth, hidden, mlp = (data.draw(st.sampled_from(axis)) for axis in (space.depth, space.hidden, space.mlp))
    heads, kv_heads = data.draw(st.sampled_from(space.head_pairs))
    uniform = Architecture.uniform(depth, hidden, heads, mlp, kv_heads)
    found = allocated(uniform, neuron_values)
    shape.check(found)
    assert shape.parameters(found) == shape.parameters(uniform)
    assert shape.memory_bytes(found) == shape.memory_bytes(uniform)
    assert shape.flops_per_token(found, 64) == shape.flops_per_token(uniform, 64)
    assert min(found.mlp) >= min(mlp, LEAST * shape.mlp)
    assert (found.heads, found.kv_heads) == (uniform.heads, uniform.kv_heads)


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=8, max_size=8), min_size=2, max_size=4), st.sampled_from((2, 4, 6))
)
def test_no_other_way_to_spread_keeps_more(rows: list[list[int]], each: int) -> None:
    scores = [[float(value) for value in row] for row in rows]
    neuron_values = NeuronValues.of([1.0] * len(rows), scores)
    found = allocated(Architecture.uniform(len(rows), 8, 1, each), neuron_values)

    def kept(counts: tuple[int, ...]) -> float:
        return fsum(sum(sorted(row, reverse=True)[:count]) for row, count in zip(scores, counts, strict=True))

    ways = [one for one in product(range(2, 9), repeat=len(rows)) if sum(one) == each * len(rows)]
    assert kept(found.mlp) == max(map(kept, ways))


def test_neurons_go_to_the_layers_where_they_are_worth_most() -> None:
    neuron_values = NeuronValues.of([3.0, 1.0, 2.0], [[1.0] * 16, [9.0] * 16, [2.0] * 16])
    found = allocated(Architecture.uniform(2, 8, 2, 8), neuron_values)
    assert found == Architecture(2, 8, (2, 2), (4, 12))  # the second layer does not stay


def test_only_uniform_architectures_are_spread() -> None:
    with pytest.raises(InputError, match=r"d2-h8-a1\.2-m8: its layers differ already"):
        allocated(Architecture(2, 8, (1, 2), (8, 8)), NeuronValues.of([1.0, 1.0], [[1.0] * 8] * 2))


def spaces(tmp_path: Path, allocated: str) -> SearchSpace:
    file = tmp_path / "space.yaml"
    file.write_text(f"allocated: {allocated}\nheads: [50%, 75%, 100%]\nmlp: [50%, 100%]\n")
    return load_space(str(file), SMALL)


@given(st.data())
def test_a_space_with_both_has_each_once_and_finds_them_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    space = spaces(tmp_path_factory.mktemp("space"), "[false, true]")
    known = replace(space, neuron_values=values_of(data.draw, SMALL))
    assert known.counts == space.counts
    band = parse_budget("60%", SMALL.parameters(SMALL.full), known.counts)
    before, found = list(space.feasible(band)), list(known.feasible(band))
    assert [one for one in found if one.is_uniform] == before
    assert len({one.key for one in found}) == len(found)
    assert set(found) == {one for one in known if SMALL.parameters(one) in band}
    for one in found:
        assert known.architecture(known.sizes(one)) == one
    names = dict(informed(SMALL, found))
    plain = dict(informed(SMALL, before))
    assert {name: names[name] for name in plain} == plain
    for name in names.keys() - plain.keys():
        twin = plain[name.removesuffix(", by layer")]
        assert names[name] == allocated(twin, known.neuron_values) != twin


def test_a_space_with_sizes_by_layer_alone(tmp_path: Path) -> None:
    space = spaces(tmp_path, "[true]")
    units = [[float(layer + place % 7) for place in range(1024)] for layer in range(8)]
    known = replace(space, neuron_values=NeuronValues.of(range(8), units))
    band = parse_budget("60%", SMALL.parameters(SMALL.full), known.counts)
    found = list(known.feasible(band))
    assert len(found) == len(list(space.feasible(band)))
    assert all(known.architecture(known.sizes(one)) == one for one in found)
    assert {one.is_uniform for one in found} == {True, False}  # uniform if only layers are removed
    assert {known.sizes(one)["allocated"] for one in found} == {1}
    assert set(dict(informed(SMALL, found)).values()) <= set(found)
    assert set(baselines(SMALL, found, 0).values()) <= set(found)


def test_what_is_not_known_yet_is_not_guessed(tmp_path: Path) -> None:
    space = spaces(tmp_path, "[false, true]")
    with pytest.raises(ValueError, match="not known yet"):
        space.architecture({"depth": 8, "hidden": 256, "heads": 4, "mlp": 512, "allocated": 1})
