"""Sparsity, quantization and adapters as axes of a space, and budgets in bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.architecture import Architecture
from search_spaces.budget import Budget, parse_budgets, unit_of
from search_spaces.compression import Compression, Quantization, Sparsity
from search_spaces.errors import InputError
from search_spaces.files import load_space
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.stored_size import fits, memory_bytes, stored_bytes

SHAPE = ModelShape("gpt2", 4, 256, 4, 64, 1024, 4096, 256, tied=True)
AXES = {"sparsity": [0, 0.5, "2:4"], "quantization": ["none", "int8", {"scheme": "nf4", "double": False}]}


def space_of(tmp_path: Path, **keys: object) -> SearchSpace:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(keys))
    return load_space(str(file), SHAPE)


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    return space_of(tmp_path, depth=[3, 4], hidden=[192, 256], heads=["100%"], mlp=["100%"], **AXES)


def test_every_combination_is_there_once(space: SearchSpace) -> None:
    found = list(space)
    assert len(found) == len(set(found)) == 2 * 2 * 3 * 3
    assert len({one.key for one in found}) == len(found)
    assert {one.compression for one in found if one.depth == 3 and one.hidden == 192} == {
        Compression(sparsity, quantization)
        for sparsity in (Sparsity(), Sparsity(0.5), Sparsity(0.5, "2:4"))
        for quantization in (Quantization(), Quantization("int8"), Quantization("nf4", double=False))
    }


def test_sizes_and_json_give_the_same_architecture(space: SearchSpace) -> None:
    for one in space:
        assert space.architecture(space.sizes(one)) == one
        assert Architecture.from_dict(json.loads(json.dumps(one.to_dict()))) == one
        assert len(space.position(space.sizes(one))) == len(space.axes)


def test_the_identity_of_a_space_names_its_values(space: SearchSpace) -> None:
    assert space.to_dict()["compression"] == {
        "sparsity": ["none", "s50", "s2of4"],
        "quantization": ["none", "int8", "nf4single"],
    }


@given(st.integers(1_000_000, 12_000_000), st.floats(0.01, 0.9))
def test_a_budget_in_bytes_holds_what_is_small_enough(most: int, share: float) -> None:
    one = SearchSpace(
        SHAPE, (3, 4), (192, 256), (4,), (1024,), sparsity=(Sparsity(), Sparsity(0.5)), quantization=(Quantization(),)
    )
    budget = Budget(round(most * share), most, "", "bytes")
    found = set(one.feasible(budget))
    assert found == {each for each in one if round(most * share) <= stored_bytes(SHAPE, each) <= most}
    assert all(fits(budget, SHAPE, each) for each in found)


def test_bytes_fall_with_every_way(space: SearchSpace) -> None:
    sizes = {one.key: stored_bytes(SHAPE, one) for one in space if one.depth == 4 and one.hidden == 256}
    plain = "d4-h256-a4-m1024"
    order = [plain, f"{plain}-s50", f"{plain}-int8", f"{plain}-s50-int8", f"{plain}-s50-nf4single"]
    assert sorted(order, key=lambda key: -sizes[key]) == order
    assert sizes[plain] == pytest.approx(2 * SHAPE.parameters(SHAPE.full), rel=0.01)
    assert sizes[f"{plain}-s2of4"] == sizes[f"{plain}-s50"]


def test_zeros_take_up_memory_and_codes_do_not(space: SearchSpace) -> None:
    needs = {one.key: memory_bytes(SHAPE, one) for one in space if one.depth == 4 and one.hidden == 256}
    plain = "d4-h256-a4-m1024"
    assert needs[plain] == needs[f"{plain}-s50"] == SHAPE.memory_bytes(SHAPE.full)
    assert needs[f"{plain}-s50-int8"] == needs[f"{plain}-int8"] < 0.7 * needs[plain]


@pytest.mark.parametrize(
    ("text", "unit"), [("90MB", "bytes"), ("1.2GB", "bytes"), ("40%B", "bytes"), ("90kb", "bytes")]
)
def test_budgets_in_bytes_are_known_by_their_unit(text: str, unit: str) -> None:
    assert unit_of(text) == unit


@pytest.mark.parametrize("text", ["90M", "0.26B", "1.2G", "40%", "260_000_000"])
def test_other_budgets_are_parameters(text: str) -> None:
    assert unit_of(text) == "parameters"


def test_shares_and_units_of_bytes() -> None:
    (share,) = parse_budgets("40%B", 1_000_000_000, [390_000_000], 0.05)
    assert (share.minimum, share.maximum, share.unit) == (380_000_000, 400_000_000, "bytes")
    assert str(share) == "40%B = 380,000,000 to 400,000,000 bytes"
    (size,) = parse_budgets("0.4GB", 1_000_000_000, [390_000_000], 0.05)
    assert (size.minimum, size.maximum) == (share.minimum, share.maximum)
    with pytest.raises(InputError, match="some are in parameters and some in bytes; give all in one unit"):
        unit_of("90MB,100M")
    with pytest.raises(InputError, match=r"no architecture has .* bytes; the architectures of this space have 5 to 5"):
        parse_budgets("1MB", 10, [5], 0.05)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sparsity": [1.2]}, "sparsity.level 1.2: must be from 0 to 0.95"),
        ({"sparsity": [{"level": 0.5, "matrices": ["lm_head"]}]}, "sparsity.matrices .*: must be attention or mlp"),
        ({"sparsity": [{"level": 0.5, "modules": "all"}]}, "sparsity: unknown field 'modules'; known are level"),
        ({"sparsity": ["half"]}, "sparsity: 'half' is not a level such as 0.5"),
        ({"sparsity": [0.5, 0.5]}, "key 'sparsity': s50 is there twice; give each value once"),
        ({"sparsity": []}, "key 'sparsity': give at least one value"),
        ({"quantization": ["int3"]}, "quantization.scheme 'int3': must be one of none, int8, int8wo, nf4"),
        ({"quantization": [{"scheme": "nf4", "bits": 3}]}, "quantization: unknown field 'bits'"),
        ({"quantization": [{"scheme": "nf4", "group": 48}]}, "quantization.group 48: must be one of 64, 128"),
        (
            {"quantization": ["nf4"], "hidden": [240]},
            "nf4 needs matrices with .* inputs that are one of 64; no architecture has them",
        ),
        ({"quantization": ["int8wo"]}, "int8wo needs matrices with rows of outputs, which gpt2 does not have"),
        ({"quantization": [3]}, "quantization: 3 is not none, a scheme such as nf4"),
        ({"adapters": [{"rank": 0}]}, "adapters.rank 0: must be at least 1"),
        ({"adapters": [{"rank": 8, "alpha": 0}]}, "adapters.alpha 0.0: must be above 0"),
        (
            {"sparsity": ["2:4"], "mlp": [1022]},
            "2:4 needs inputs that are a multiple of 4, and mlp has matrices of 1022",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_name_of_the_field(
    keys: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        space_of(tmp_path, **keys)


def test_the_preset_mixed_has_what_the_teacher_allows() -> None:
    small = ModelShape("gpt2", 2, 48, 4, 12, 96, 320, 64, tied=True)
    assert [one.scheme for one in load_space("mixed", small).quantization] == ["none", "int8"]
    found = load_space("mixed", SHAPE)
    assert found.sparsity == (Sparsity(), Sparsity(0.5, method="sparsegpt"))
    assert [one.scheme for one in found.quantization] == ["none", "int8", "nf4"]
