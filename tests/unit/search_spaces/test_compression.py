"""Compression: a canonical key, a lossless JSON form, and no illegal values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.compression import (
    BITS,
    GROUPS,
    MATRICES,
    METHODS,
    MOST_SPARSE,
    Adapters,
    Compression,
    Quantization,
    Sparsity,
)
from search_spaces.errors import InputError

matrices = st.sampled_from([MATRICES, ("attention",), ("mlp",)])
levels = st.floats(0, MOST_SPARSE) | st.sampled_from([0.0, 0.5, 0.505, 0.0001])
shares = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.01, 1.0])


@st.composite
def sparsities(draw: st.DrawFn) -> Sparsity:
    kind = draw(st.sampled_from(["unstructured", "2:4"]))
    start, end = sorted((draw(shares), draw(shares)))
    return Sparsity(
        level=0.5 if kind == "2:4" else draw(levels),
        kind=kind,
        matrices=draw(matrices),
        method=draw(st.sampled_from(METHODS)),
        start=start,
        end=end,
        tau=draw(st.floats(1e-8, 1) | st.sampled_from([1e-8, 1e-4, 1.0])),
        warmup=draw(shares),
        beta=draw(st.floats(0, 100) | st.sampled_from([0.0, 5.0])),
        mask_aware=draw(st.booleans()),
        rate=draw(st.floats(0.01, 100) | st.just(1.0)),
        distilled=draw(st.booleans()),
    )


@st.composite
def quantizations(draw: st.DrawFn) -> Quantization:
    scheme = draw(st.sampled_from(list(BITS)))
    group = draw(st.sampled_from([0, *GROUPS.get(scheme, ())]))
    return Quantization(scheme, group, draw(st.booleans()), draw(matrices))


adapters = st.builds(Adapters, st.integers(0, 256), st.floats(0.01, 4096), levels, matrices)
compressions = st.builds(Compression, sparsities(), quantizations(), adapters)


@given(compressions)
def test_json_round_trip_gives_the_same_compression(one: Compression) -> None:
    assert Compression.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@given(compressions, compressions)
def test_keys_are_equal_exactly_when_compressions_are(one: Compression, other: Compression) -> None:
    assert (one.key == other.key) == (one == other)


@given(sparsities(), st.data())
def test_keys_differ_when_one_field_does(one: Sparsity, data: st.DataObject) -> None:
    other = data.draw(sparsities())
    name = data.draw(
        st.sampled_from(["level", "matrices", "method", "tau", "warmup", "beta", "mask_aware", "distilled"])
    )
    values = {**vars(one), name: getattr(other, name)}
    changed = Sparsity(**values if values["level"] == 0.5 else {**values, "kind": "unstructured"})
    assert (one.key == changed.key) == (one == changed)


@given(compressions)
def test_key_is_safe_in_a_file_name(one: Compression) -> None:
    assert all(letter.isalnum() or letter in "-." for letter in one.key)


@given(sparsities())
def test_what_means_nothing_is_not_kept(one: Sparsity) -> None:
    if not one.level:
        assert one == Sparsity()
    if one.method != "pdp":
        assert (one.tau, one.warmup, one.beta, one.mask_aware) == (1e-4, 0.5, 0.0, False)
    if one.method in ("pdp", "sparsegpt"):
        assert one.start == one.end == 0


def test_keys_are_readable() -> None:
    assert Sparsity(0.5).key == "s50"
    assert Sparsity(0.5, "2:4", ("mlp",), "wanda").key == "s2of4mlpwanda"
    assert Sparsity(0.5, start=0.1, end=0.6).key == "s50b10e60"
    pdp = Sparsity(0.5, method="pdp", tau=0.001, warmup=0.3, beta=5, mask_aware=True)
    assert pdp.key == "s50pdpt0.001w30x5aware"
    assert Sparsity(0.5, end=0.6, distilled=False).key == "s50b0e60text"
    assert Compression(Sparsity(0.5), Quantization("nf4"), Adapters(8)).key == "s50-nf4-r8"
    assert not Compression(Sparsity(0, matrices=("mlp",)), Quantization(matrices=("mlp",)), Adapters(0, 3))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"level": 1.2}, "sparsity.level 1.2: must be from 0 to 0.95"),
        ({"level": float("nan")}, "sparsity.level nan"),
        ({"level": "half"}, "sparsity.level 'half'"),
        ({"level": True}, "sparsity.level True"),
        ({"level": 0.4, "kind": "2:4"}, "sparsity.level 0.4: 2:4 is a level of 0.5"),
        ({"level": 0.5, "kind": "1:4"}, "sparsity.kind '1:4'"),
        ({"level": 0.5, "method": "movement"}, "sparsity.method 'movement': must be one of magnitude, wanda"),
        ({"level": 0.5, "method": ["pdp"]}, "sparsity.method"),
        ({"level": 0.5, "start": 0.6, "end": 0.5}, "sparsity.start 0.6: must be from 0 to sparsity.end, which is 0.5"),
        ({"level": 0.5, "end": 1.1}, "sparsity.end 1.1"),
        ({"level": 0.5, "end": None}, "sparsity.end None: must be a number"),
        ({"level": 0.5, "tau": 0}, "sparsity.tau 0.0"),
        ({"level": 0.5, "warmup": -0.1}, "sparsity.warmup -0.1"),
        ({"level": 0.5, "beta": 101}, "sparsity.beta 101"),
        ({"level": 0.5, "mask_aware": 1}, "sparsity.mask_aware 1"),
        ({"level": 0.5, "distilled": "no"}, "sparsity.distilled 'no': must be true or false"),
        ({"level": 0.5, "matrices": ["head"]}, "sparsity.matrices"),
        ({"level": 0.5, "scope": "all"}, "sparsity: unknown field 'scope'"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        Compression.from_dict({"sparsity": wrong})
    assert str(error.value).startswith(line)
