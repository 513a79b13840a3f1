"""The closed form of where students load says llama.cpp just where a file is written, by the name that it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_gpt2
from test_gguf_writer import (
    BY_LAYER,
    BY_LAYER_GPT,
    DECOUPLED,
    LINEAR,
    LLAMA_3,
    SERVED,
    SQUARE,
    TEACHERS,
    Made,
    rotary,
    student_of,
    tokenizer_folder,  # noqa: F401 (a fixture)
)

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.export.gguf.writer import layout_of, write_gguf
from trials.export.loads_in import LLAMA_CPP, loads_in, requirements
from trials.families.lookup import family_of
from trials.families.shapes import shape_of

WINDOWS = {"use_sliding_window": True, "max_window_layers": 0}
REFUSED: dict[str, Made] = {
    "gpt2 with relu": lambda: make_gpt2(activation_function="relu"),
    "gpt2 without scale": lambda: make_gpt2(scale_attn_weights=False),
    "gpt_neox without biases": rotary("gpt_neox", rotary_pct=0.5, attention_bias=False),
    "gpt_neox that turns 3 channels": rotary("gpt_neox", rotary_pct=0.25),
    "llama with gelu": rotary("llama", hidden_act="gelu"),
    "llama with dynamic positions": rotary("llama", rope_parameters={**LINEAR, "rope_type": "dynamic"}),
    "mistral with windows": rotary("mistral", sliding_window=16),
    "qwen2 with windows": rotary("qwen2", sliding_window=16, **WINDOWS),
    "qwen2 with whole windows": rotary("qwen2", sliding_window=64, **WINDOWS),
    "qwen3 with biases": rotary("qwen3", attention_bias=True),
    "qwen3 with llama3 positions": rotary("qwen3", rope_parameters=LLAMA_3),
    "seed_oss": rotary("seed_oss", attention_bias=True, attention_out_bias=False),
    "seed_oss with more biases": rotary("seed_oss", attention_bias=True, attention_out_bias=True),
    "seed_oss with MLP biases": rotary("seed_oss", attention_bias=True, attention_out_bias=False, mlp_bias=True),
}
SIZES = [SQUARE, DECOUPLED, Architecture.uniform(2, 43, 4, 60, 2), Architecture.uniform(2, 48, 4, 60, 2), BY_LAYER]
SIZES_GPT = [SQUARE, Architecture.uniform(2, 40, 3, 64), Architecture.uniform(3, 48, 4, 60), BY_LAYER_GPT]


@pytest.mark.parametrize("name", [*TEACHERS, *REFUSED])
def test_the_closed_form_names_llama_cpp_just_where_a_file_is_written(name: str) -> None:
    config = {**TEACHERS, **REFUSED}[name]().config
    shape = shape_of(config)
    sizes = SIZES_GPT if "gpt" in config.model_type else SIZES
    if name.startswith("seed_oss with"):  # the closed form calls a teacher with these biases not computed at all
        sizes = [one for one in sizes if one.is_uniform]
    for one in sizes:
        student = family_of(config).build(config, one)
        try:
            written = layout_of(student).name
        except InputError:
            written = ""
        found = loads_in(shape, one)
        assert (found.route, found.saved_as) == (written, student.config.model_type), one.key
        assert (LLAMA_CPP in found.programs) == (LLAMA_CPP not in found.reasons) == bool(written)
        if not shape.unserved:
            (asked,) = requirements(shape, [LLAMA_CPP], [])
            assert asked.allows(shape, one) == bool(written)


def test_what_was_tried_in_llama_cpp_itself_is_what_it_says() -> None:
    for teacher, sizes, architecture in SERVED:
        assert loads_in(shape_of(TEACHERS[teacher]().config), sizes).route == architecture


def test_a_teacher_that_llama_cpp_does_not_compute_is_refused_before_anything_is_proposed() -> None:
    shape = shape_of(REFUSED["mistral with windows"]().config)
    with pytest.raises(InputError, match=r"--loads-in llama\.cpp: it does not compute sliding windows of 16 tokens"):
        requirements(shape, [LLAMA_CPP], [])


@pytest.mark.parametrize(
    "sizes", [(2, 64, 4, 96, 2), (2, 64, 4, 60, 2), (2, 48, 4, 96, 2), (2, 64, 3, 96, 3), (2, 64, 6, 32, 3)]
)
def test_the_formats_of_32_are_those_of_files_without_a_tensor_left_in_f16(
    sizes: tuple[int, ...],
    tokenizer_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    one = Architecture.uniform(*sizes)
    written = write_gguf(student_of("llama-wide", one), tokenizer_folder, tmp_path / "student.gguf", "q8_0")
    found = loads_in(shape_of(TEACHERS["llama-wide"]().config), one)
    assert ("gguf" in found.formats) == (written.left_tensors == 0)
