"""Architecture: a canonical key, a lossless JSON form, and no impossible sizes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

sizes = st.integers(1, 5000)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    depth = draw(st.integers(1, 60))
    per_layer = st.lists(sizes, min_size=depth, max_size=depth).map(tuple)
    same = sizes.map(lambda size: (size,) * depth)
    kv_heads, groups = draw(per_layer | same), draw(per_layer | same | st.just((1,) * depth))
    heads = tuple(kv * group for kv, group in zip(kv_heads, groups, strict=True))
    named = st.sets(st.integers(0, 90), min_size=depth, max_size=depth).map(sorted).map(tuple)
    return Architecture(depth, draw(sizes), heads, draw(per_layer | same), kv_heads, draw(named | st.just(())))


@given(architectures())
def test_json_round_trip_gives_the_same_architecture(one: Architecture) -> None:
    assert Architecture.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@given(architectures(), architectures())
def test_keys_are_equal_exactly_when_architectures_are(one: Architecture, other: Architecture) -> None:
    assert (one.key == other.key) == (one == other)


@given(architectures())
def test_key_is_a_safe_file_name(one: Architecture) -> None:
    assert len(one.key) <= 64
    assert all(letter.isalnum() or letter in "-." for letter in one.key)


def test_uniform_key_is_readable() -> None:
    assert Architecture.uniform(12, 768, 12, 3072).key == "d12-h768-a12-m3072"
    assert Architecture(3, 64, (4, 4, 2), (256,) * 3).key == "d3-h64-a4x2.2-m256"
    named = Architecture(6, 256, (8,) * 6, (1024,) * 6, kept_layers=(0, 1, 2, 3, 6, 7))
    assert named.key == "d6-h256-a8-m1024-l0to3.6.7"


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0, "hidden": 8, "heads": 1, "mlp": 8},
        {"depth": 2, "hidden": 8, "heads": [1], "mlp": 8},
        {"depth": 1, "hidden": -8, "heads": 1, "mlp": 8},
        {"depth": 1, "hidden": True, "heads": 1, "mlp": 8},
        {"depth": 1, "hidden": "8", "heads": 1, "mlp": 8},
        {"depth": 1, "hidden": 8, "heads": 1},
        {"depth": 1, "hidden": 8, "heads": 1, "mlp": 8, "kv": 1},
        {"depth": 1, "hidden": 8, "heads": 1, "mlp": [8.0]},
        {"depth": 1, "hidden": 8, "heads": 4, "mlp": 8, "kv_heads": 3},
        {"depth": 2, "hidden": 8, "heads": 4, "mlp": 8, "kv_heads": [2]},
        {"depth": 2, "hidden": 8, "heads": 4, "mlp": 8, "kept_layers": [2]},
        {"depth": 2, "hidden": 8, "heads": 4, "mlp": 8, "kept_layers": [2, 1]},
        {"depth": 2, "hidden": 8, "heads": 4, "mlp": 8, "kept_layers": [-1, 1]},
        {"depth": 2, "hidden": 8, "heads": 4, "mlp": 8, "kept_layers": [1, 1.5]},
    ],
)
def test_wrong_sizes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="architecture"):
        Architecture.from_dict(wrong)
