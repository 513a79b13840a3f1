"""Multiples: the sizes of a range are multiples, lists are taken as they are, and the teacher's size stays."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_space import MEDIUM, SMALL, SMOL

from search_spaces.allocation import NeuronValues
from search_spaces.errors import InputError
from search_spaces.files import load_space, own_multiple

WIDE = {"medium": MEDIUM, "small": SMALL, "smol": SMOL, "qwen": replace(SMOL, hidden=896, mlp=4864, heads=14, group=7)}
PYTHIA = replace(SMALL, family="gpt_neox", hidden=2560, heads=32, head_dim=80, mlp=10_240)
TINY = replace(SMALL, hidden=48, heads=4, head_dim=12, mlp=100)


def written(folder: Path, **keys: object) -> str:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(keys))
    return str(path)


def test_the_multiple_of_a_teacher_is_a_power_of_two_that_leaves_steps_and_whole_heads() -> None:
    found = {name: (own_multiple(shape, "hidden"), own_multiple(shape, "mlp")) for name, shape in WIDE.items()}
    assert found == {"medium": (64, 64), "small": (32, 64), "smol": (64, 64), "qwen": (64, 64)}
    assert own_multiple(PYTHIA, "hidden") == 16  # of a head of 80: with 64, few widths would be those of whole heads
    assert (own_multiple(TINY, "hidden"), own_multiple(TINY, "mlp")) == (4, 4)
    assert [own_multiple(SMOL, axis) for axis in ("depth", "heads", "kv_heads")] == [1, 1, 1]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(WIDE)),
    st.sampled_from((1, 2, 16, 32, "auto")),
    st.floats(1, 100).map("{:.2f}%".format),
    st.floats(1, 30).map("{:.2f}%".format),
)
def test_every_size_of_a_range_is_a_multiple_and_the_teachers_own_is_one_of_them(
    tmp_path: Path, name: str, multiple: int | str, least: str, step: str
) -> None:
    shape = WIDE[name]
    axis = {"min": least, "step": step, "multiple": multiple}
    for axis_name in ("hidden", "mlp"):
        others = {one: ["100%"] for one in ("depth", "hidden", "heads", "mlp") if one != axis_name}
        grouped = {"kv_heads": ["100%"]} if shape.group > 1 else {}
        sizes = getattr(load_space(written(tmp_path, **others, **grouped, **{axis_name: axis}), shape), axis_name)
        unit = own_multiple(shape, axis_name) if multiple == "auto" else int(multiple)
        teacher = getattr(shape, axis_name)
        assert sizes[-1] == teacher
        assert all(size % unit == 0 and size >= teacher * float(least[:-1]) / 100 for size in sizes)
        assert len({after - before for before, after in pairwise(sizes)}) <= 1


def test_a_step_becomes_the_nearer_multiple_and_one_is_the_way_out(tmp_path: Path) -> None:
    def hidden(multiple: int | str, step: int) -> tuple[int, ...]:
        axis = {"min": 288, "step": step, "multiple": multiple}
        return load_space(written(tmp_path, hidden=axis), SMOL).hidden

    assert hidden("auto", 36) == (320, 384, 448, 512, 576)
    assert hidden("auto", 90) == hidden("auto", 64)
    assert hidden("auto", 100) == (320, 448, 576)
    assert hidden(1, 36) == (288, 324, 360, 396, 432, 468, 504, 540, 576)


def test_a_list_is_taken_as_it_is(tmp_path: Path) -> None:
    space = load_space(written(tmp_path, hidden=[300, 540], mlp=["33%", 1001], allocated=[True]), SMOL)
    assert (space.hidden, space.mlp, space.mlp_multiple) == ((300, 540), (507, 1001), 1)


def test_neurons_of_each_layer_are_multiples_too(tmp_path: Path) -> None:
    axis = {"min": "50%", "step": "12.5%", "multiple": "auto"}
    space = load_space(written(tmp_path, mlp=axis, depth=[15], allocated=[True]), SMOL)
    rows = [[float((place * 31 + layer) % 97) * (layer + 1) for place in range(1536)] for layer in range(30)]
    found = list(replace(space, neuron_values=NeuronValues.of(range(30), rows)))
    assert any(not one.is_uniform for one in found)
    assert all(size % 64 == 0 for one in found for size in one.mlp)


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ({"min": "50%", "multiple": 100}, "key 'hidden': multiple 100 does not divide the teacher's 576; 4 does"),
        ({"min": 500, "max": 510, "multiple": 64}, "has no values.*a multiple of 64 must lie between them"),
        ({"min": "50%", "multiple": 0}, "key 'hidden'.*greater than or equal to 1"),
        ({"min": "50%", "multiple": "most"}, "key 'hidden'.*got 'most'"),
    ],
)
def test_a_multiple_that_cannot_be_is_refused(tmp_path: Path, axis: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_space(written(tmp_path, hidden=axis), SMOL)
