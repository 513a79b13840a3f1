"""Where students load, in closed form, against the classes that the families build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import make_decoder, make_gpt2
from transformers import PretrainedConfig

from search_spaces.architecture import Architecture
from search_spaces.compression import Compression, Quantization
from search_spaces.errors import InputError
from trials.export.loads_in import (
    FORMATS,
    LLAMA_CPP,
    NAMES,
    PROGRAMS,
    VLLM,
    card_lines,
    loads_in,
    parse_formats,
    parse_programs,
    requirements,
)
from trials.families.lookup import family_of
from trials.families.shapes import SHAPES, shape_of

UNIFORM, DECOUPLED = Architecture.uniform(2, 48, 4, 64, 2), Architecture.uniform(2, 40, 4, 64, 2)
BY_LAYER = Architecture(2, 48, (4, 2), (64, 96), (2, 2))


def config_of(family: str, **changes: Any) -> PretrainedConfig:
    return (make_gpt2(**changes) if family == "gpt2" else make_decoder(family, **changes)).config


def full_heads(family: str, one: Architecture) -> Architecture:
    """``one`` with as many key/value heads as heads, where the family has no groups."""
    return replace(one, kv_heads=one.heads) if family in ("gpt2", "gpt_neox") else one


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("one", [UNIFORM, DECOUPLED, BY_LAYER], ids=["uniform", "decoupled", "by-layer"])
def test_transformers_loads_what_is_built_of_its_own_class(family: str, one: Architecture) -> None:
    config, one = config_of(family), full_heads(family, one)
    student, found = family_of(config).build(config, one), loads_in(shape_of(config), one)
    assert type(student).__module__.startswith("transformers.") == found.stock
    assert student.config.model_type == found.saved_as


@pytest.mark.parametrize(
    ("family", "changes", "one", "programs", "route"),
    [
        ("gpt2", {}, UNIFORM, "transformers, vLLM, llama.cpp", "gpt2"),
        ("gpt2", {}, DECOUPLED, "own code", ""),
        ("gpt2", {}, BY_LAYER, "own code", ""),
        ("gpt_neox", {"rotary_pct": 0.5}, UNIFORM, "transformers, vLLM, llama.cpp", "gptneox"),
        ("gpt_neox", {}, BY_LAYER, "own code", ""),
        ("llama", {}, DECOUPLED, "transformers, vLLM, llama.cpp", "llama"),
        ("mistral", {}, BY_LAYER, "own code, llama.cpp", "deci"),
        ("qwen2", {}, UNIFORM, "transformers, vLLM, llama.cpp", "qwen2"),
        ("qwen2", {}, DECOUPLED, "transformers, vLLM, llama.cpp", "seed_oss"),
        ("qwen2", {}, BY_LAYER, "own code, llama.cpp", "deci"),
        ("qwen3", {}, DECOUPLED, "transformers, vLLM, llama.cpp", "qwen3"),
        ("qwen3", {"tie_word_embeddings": True}, BY_LAYER, "own code, llama.cpp", "openelm"),
        ("qwen3", {"tie_word_embeddings": False}, BY_LAYER, "own code", ""),
    ],
)
def test_where_students_load_is_what_was_tried(
    family: str, changes: dict[str, Any], one: Architecture, programs: str, route: str
) -> None:
    shape, one = shape_of(config_of(family, **changes)), full_heads(family, one)
    found = loads_in(shape, one if route != "qwen2" else replace(one, heads=(4, 4)))
    assert (str(found), found.route) == (programs, route)
    assert (LLAMA_CPP in found.reasons) == (not route)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_requirement_allows_just_what_loads(family: str, tied: bool) -> None:
    rotary = {"rotary_pct": 0.5} if family == "gpt_neox" else {}
    shape = shape_of(config_of(family, tie_word_embeddings=tied, **rotary))
    quantized = replace(UNIFORM, compression=Compression(quantization=Quantization("int8")))
    for one in (full_heads(family, each) for each in (UNIFORM, DECOUPLED, BY_LAYER, quantized)):
        for program in PROGRAMS.values():
            (asked,) = requirements(shape, [program], [])
            assert asked.allows(shape, one) == (program in loads_in(shape, one).programs)


def test_formats_by_their_multiples() -> None:
    shape = shape_of(config_of("mistral", hidden_size=512, intermediate_size=1024, head_dim=64))
    kept = {one: loads_in(shape, Architecture.uniform(2, one, 4, 2 * one, 2)).formats for one in (512, 384, 320, 224)}
    assert set(kept[512]) == set(FORMATS)
    assert set(FORMATS) - set(kept[384]) == {"k-quants"}
    assert set(FORMATS) - set(kept[320]) == {"k-quants", "int4"}
    assert set(kept[224]) == {"bf16", "gguf"}


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (parse_programs, "vlm", "--loads-in 'vlm': not known; did you mean vllm"),
        (parse_programs, "", "--loads-in '': not known; give some of transformers, vllm, llama.cpp"),
        (parse_formats, "q4_k,q9_k", "--quantises-to 'q9_k': not known"),
    ],
)
def test_unknown_names_are_refused_with_those_that_are_known(
    read: Callable[[str | None], tuple[str, ...]], text: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read(text)


def test_names_are_read_in_any_case_and_once() -> None:
    assert parse_programs("vLLM, llama.cpp,vllm") == (VLLM, LLAMA_CPP)
    assert parse_formats("Q4_K,int4") == ("q4_k", "int4")
    assert set(NAMES.values()) == set(FORMATS)
    assert parse_programs(None) == parse_formats(None) == ()


def test_the_card_says_where_it_loads_and_why_not() -> None:
    shape = shape_of(config_of("gpt2"))
    said = "\n".join(card_lines(loads_in(shape, full_heads("gpt2", BY_LAYER))))
    assert "with the modelling file in this folder" in said
    assert "Does not load in llama.cpp: it has no gpt2 with sizes by layer" in said
    assert "K-quants (inputs of matrices in multiples of 256)" in said
