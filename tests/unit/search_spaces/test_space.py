"""Spaces: the grid derived from a teacher, the feasible set, presets and users' files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from search_spaces.architecture import Architecture
from search_spaces.budget import parse_budget
from search_spaces.errors import InputError
from search_spaces.files import PRESETS, load_space, study_settings
from search_spaces.shape import ModelShape
from search_spaces.space import SearchSpace

MEDIUM = ModelShape("gpt2", 24, 1024, 16, 64, 4096, 50257, 1024, tied=True)
SMALL = ModelShape("gpt2", 8, 256, 8, 32, 1024, 4096, 256, tied=True)
SMOL = ModelShape(
    "llama",
    30,
    576,
    9,
    64,
    1536,
    49_152,
    8192,
    tied=True,
    group=3,
    learned_positions=False,
    mlp_matrices=3,
    norm_vectors=1,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    stock="any",
)


def test_counts_of_published_models() -> None:
    small = ModelShape("gpt2", 12, 768, 12, 64, 3072, 50257, 1024, tied=True)
    assert small.parameters(small.full) == 124_439_808
    assert MEDIUM.parameters(MEDIUM.full) == 354_823_168
    pruned = [(24, 1024, 12, 2560), (24, 1024, 10, 3072), (20, 1024, 12, 3584)]
    counted = [MEDIUM.parameters(Architecture.uniform(*sizes)) for sizes in pruned]
    assert counted == [254_104_576, 266_690_560, 262_469_632]


def test_memory_is_weights_and_the_cache_of_a_full_context() -> None:
    cache = 2 * 24 * 1024  # keys and values of all layers, one token
    assert MEDIUM.memory_bytes(MEDIUM.full) == 2 * (354_823_168 + 1024 * cache)
    assert MEDIUM.memory_bytes(MEDIUM.full, dtype_bytes=4) == 2 * MEDIUM.memory_bytes(MEDIUM.full)
    grouped = SMOL.memory_bytes(SMOL.full) - 2 * SMOL.parameters(SMOL.full)
    assert grouped == 8192 * 2 * 2 * 30 * 3 * 64


def test_untied_output_projection_counts_once_more() -> None:
    untied = ModelShape("gpt2", 8, 256, 8, 32, 1024, 4096, 256, tied=False)
    assert untied.parameters(untied.full) - SMALL.parameters(SMALL.full) == 4096 * 256


def test_default_space_of_gpt2_medium_has_about_3000_points() -> None:
    assert len(list(load_space("default", MEDIUM))) == 2_925


@pytest.mark.parametrize("preset", [one for one in PRESETS if one != "layer-removal"])
@pytest.mark.parametrize(("shape", "budget"), [(MEDIUM, "260M"), (SMALL, "60%"), (SMOL, "100M")])
def test_every_preset_has_a_band(preset: str, shape: ModelShape, budget: str) -> None:
    space = load_space(preset, shape)
    own = study_settings(preset).get("budget", "").split(",")[0]  # some presets have budgets of their own
    band = parse_budget(own or budget, shape.parameters(shape.full), space.counts)
    feasible = list(space.feasible(band))
    assert feasible
    for one in feasible:
        shape.check(one)
        assert band.minimum <= shape.parameters(one) <= band.maximum


def test_layer_removal_has_every_choice_of_at_most_16_layers() -> None:
    found = list(load_space("layer-removal", SMALL))
    assert len({SMALL.whole_layers(one) for one in found}) == len(found) == 2**8 - 1
    assert SMALL.full in found
    load_space("layer-removal", replace(SMALL, layers=16))
    with pytest.raises(InputError, match="131,071 choices of layers; at most 100,000 are legal"):
        load_space("layer-removal", replace(SMALL, layers=17))


def test_whole_layers_are_those_of_a_slice_and_of_nothing_else() -> None:
    slice_of_two = replace(Architecture.uniform(2, 256, 8, 1024), kept_layers=(3, 6))
    assert SMALL.whole_layers(slice_of_two) == (3, 6)
    assert SMALL.whole_layers(SMALL.full) == tuple(range(8))
    fewer_heads = replace(slice_of_two, heads=(7, 7), kv_heads=(7, 7))
    others = [replace(slice_of_two, hidden=128), replace(slice_of_two, mlp=(1024, 1000)), fewer_heads]
    assert not [one for one in (*others, slice_of_two.timed) if SMALL.whole_layers(one) is not None]


def test_heads_and_key_value_heads_are_paired_where_groups_stay_whole() -> None:
    space = load_space("default", SMOL)
    assert space.head_pairs == ((6, 2), (6, 3), (9, 3))
    for one in space:
        SMOL.check(one)
    assert load_space("default", MEDIUM).head_pairs == tuple((heads, heads) for heads in (8, 10, 12, 14, 16))


def test_key_value_heads_are_an_axis_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("heads: [1, 2, 3, 4]\nkv_heads: [1, 2]\n")
    assert load_space(str(file), SMOL).head_pairs == ((1, 1), (2, 1), (2, 2), (3, 1), (4, 2))
    with pytest.raises(InputError, match=r"'kv_heads'.*its own key/value head"):
        load_space(str(file), SMALL)
    file.write_text("heads: [7]\nkv_heads: [3]\n")
    with pytest.raises(InputError, match=r"no number of heads is a multiple.*9 heads on 3 key/value heads"):
        load_space(str(file), SMOL)


def named_layers(folder: Path, text: str) -> SearchSpace:
    file = folder / "layers.yaml"
    file.write_text(f"{text}\nhidden: [100%]\nheads: [50%, 100%]\nmlp: [100%]\n")
    return load_space(str(file), SMALL)


def test_kept_layers_are_an_axis_of_a_file(tmp_path: Path) -> None:
    space = named_layers(tmp_path, "kept_layers: any\ndepth: [6, 7, 8]")
    found = Counter((one.depth, one.kept_layers) for one in space)
    wanted = [*combinations(range(8), 6), *combinations(range(8), 7)]
    assert found == {(8, ()): 2, **{(len(layers), layers): 2 for layers in wanted}}
    for one in space:
        SMALL.check(one)
        assert space.architecture(space.sizes(one)) == one
    assert len({tuple(space.position(space.sizes(one))) for one in space}) == found.total()


def test_kept_layers_are_named_one_by_one(tmp_path: Path) -> None:
    space = named_layers(tmp_path, "kept_layers: [[7, 0, 3], [1, 2], [0, 1, 2, 3, 4, 5, 6, 7]]")
    assert space.depth == (2, 3, 8)
    assert {one.kept_layers for one in space} == {(0, 3, 7), (1, 2), ()}


def test_too_many_choices_of_layers_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("kept_layers: any\n")
    with pytest.raises(InputError, match=r"'kept_layers': 614,429,672 choices of layers; at most 100,000.*'depth'"):
        load_space(str(file), SMOL)
    with pytest.raises(InputError, match=r"'kept_layers': the teacher has 60 layers; .* at most 53"):
        load_space(str(file), replace(SMOL, layers=60))


def test_layers_that_the_teacher_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="layer 8 is none of the teacher's 8"):
        SMALL.check(Architecture(1, 256, (8,), (1024,), kept_layers=(8,)))
    with pytest.raises(InputError, match="leave kept_layers out"):
        SMALL.check(replace(SMALL.full, kept_layers=tuple(range(8))))


def test_every_preset_file_is_named() -> None:
    folder = Path(load_space.__code__.co_filename).parent / "presets"
    assert {file.stem for file in folder.glob("*.yaml")} == set(PRESETS)


def test_feasible_set_is_what_a_filter_over_the_grid_gives() -> None:
    space = load_space("default", SMALL)
    band = parse_budget("60%", SMALL.parameters(SMALL.full), space.counts)
    wanted = {
        Architecture.uniform(d, h, a, m)
        for d in space.depth
        for h in space.hidden
        for a in space.heads
        for m in space.mlp
        if band.minimum <= SMALL.parameters(Architecture.uniform(d, h, a, m)) <= band.maximum
    }
    assert set(space.feasible(band)) == wanted


def test_stock_only_keeps_what_a_plain_from_pretrained_loads() -> None:
    assert all(one.hidden == 32 * one.heads[0] for one in load_space("stock", SMALL))


def test_file_narrows_and_widens(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("depth: [2, 100%]\nhidden: {min: 10%, step: 25%}\n")
    space = load_space(str(file), SMALL)
    assert space.depth == (2, 8)
    assert space.hidden == (64, 128, 192, 256)
    assert space.heads == load_space("default", SMALL).heads


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("depht: 3", "depht"),
        ("depth: {min: 1, foo: 2}", "depth.foo"),
        ("depth: abc", "depth"),
        ("depth: [1, x]", "depth"),
        ("depth: [30]", "depth"),
        ("depth: []", "depth"),
        ("depth: {min: 0}", "depth"),
        ("depth: {min: 9, max: 5}", "depth"),
        ("mlp: [120%]", "mlp"),
        ("hidden: [1.5]", "hidden"),
        ("stock_only: 3", "stock_only"),
        ("kept_layers: some", "such as [[0, 1, 5], [0, 2, 5]]"),
        ("kept_layers: [1, 2]", "such as [[0, 1, 5], [0, 2, 5]]"),
        ("kept_layers: []", "at least one list of layers"),
        ("kept_layers: [[]]", "[] must name some"),
        ("kept_layers: [[0, 8]]", "layers 0 to 7"),
        ("kept_layers: [[0, 0]]", "each once"),
        ("{kept_layers: [[0]], depth: [1]}", "leave 'depth' out"),
        ("allocated: []", "'allocated'"),
        ("allocated: [1]", "'allocated'"),
        ("allocated: both", "'allocated'"),
        ("{allocated: [true], stock_only: true}", "stock shapes have equal layers"),
        ("- 1", "mapping"),
        ("a: [", "YAML"),
        ("{stock_only: true, hidden: [100], heads: [8]}", "stock_only"),
    ],
)
def test_wrong_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_space(str(file), SMALL)
    assert str(file) in str(caught.value)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


JUNK = {
    "alias bomb": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
        )
        + "depth: *h\n",
        r"line 2: aliases \(\*a\) are not read",
    ),
    "3,000 lists deep": ("depth: " + "[" * 3000 + "]" * 3000, "line 1: nested more than 10 deep"),
    "5,000 digits": ("depth: [" + "9" * 5000 + "]", "line 1: a value of 5,000 characters"),
    "5,000 digits of a share": ("depth: ['" + "9" * 5000 + "%']", "a value of 5,001 characters"),
    "1,900 digits": ("depth: [" + "9" * 1900 + "]", r"'depth': 9+\.\.\. exceeds the teacher's 8"),
    "5,000 characters of a key": ("k" * 5000 + ": 1", "a value of 5,000 characters"),
    "a date that there is not": ("depth: [2026-13-01]", "month must be in"),
    "a tag": ("depth: !!timestamp x", "tags are not read"),
    "a NUL": ('depth: ["\\0"]', "a character that is in no text"),
    "half a surrogate pair": ('depth: ["\\ud83d"]', "a character that is in no text"),
    "a range of 10^12": ("depth: {min: 1, max: 1000000000000}", "exceeds the teacher's 8"),
    "a range to the 10^12th": ("depth: {min: 1, max: 2, step: 1000000000000%}", "more than the teacher has"),
    "a superscript": ("depth: [²%]", "neither a whole number nor a share"),
    "ten megabytes": ("# " + "x" * 10**7, "more than 100,000 characters"),
}


@pytest.mark.parametrize(("text", "message"), JUNK.values(), ids=JUNK)
def test_junk_is_one_short_line_at_once(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_space(str(file), SMALL)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "/dev/null/x", "\ud83d"])
def test_a_name_that_no_file_has_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match="not a readable YAML file") as caught:
        load_space(name, SMALL)
    assert "\n" not in str(caught.value)


def test_a_space_that_cannot_be_listed_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("hidden: {min: 1}\nmlp: {min: 1}\ndepth: {min: 1}")
    with pytest.raises(InputError, match=r"more than 2,000,000 architectures; give larger steps"):
        load_space(str(file), SMALL)
    file.write_text("heads: {min: 1}\nkv_heads: {min: 1}")
    with pytest.raises(InputError, match=r"more than 2,000,000 architectures"):
        load_space(str(file), replace(SMOL, heads=65_536, group=1_024))


def test_unknown_name_lists_the_presets() -> None:
    with pytest.raises(InputError, match="default, fine, depth, width, stock"):
        load_space("nope", SMALL)


def test_architecture_larger_than_the_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="hidden 512 exceeds"):
        SMALL.check(Architecture.uniform(8, 512, 8, 1024))
