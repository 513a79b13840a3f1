"""GGUF files of students of every family, in llama.cpp itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llama_cpp
import pytest
import torch
from conftest import VOCAB, make_decoder, make_gpt2
from gguf import GGUFReader
from gguf.vocab import bytes_to_unicode
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.export.gguf.tensors import TYPES
from trials.export.gguf.writer import layout_of, write_gguf
from trials.families.lookup import family_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune

END = 0
PROMPT = [5, 9, 33, 100, 7, 8, 200, 61, 1, 319, 44]
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
SQUARE, DECOUPLED = Architecture.uniform(2, 36, 3, 64), Architecture.uniform(2, 40, 4, 60, 2)
BY_LAYER = Architecture(3, 40, (4, 2, 3), (64, 40, 96), (2, 1, 3))
BY_LAYER_GPT = Architecture(3, 40, (4, 2, 3), (64, 40, 96))
Made = Callable[[], PreTrainedModel]


def rotary(model_type: str, **changes: object) -> Made:
    return lambda: make_decoder(model_type, **changes)


TEACHERS: dict[str, Made] = {
    "gpt2": make_gpt2,
    "gpt2-untied": lambda: make_gpt2(tie_word_embeddings=False),
    "gpt_neox": rotary("gpt_neox", rotary_pct=0.5),
    "gpt_neox-tied": rotary("gpt_neox", rotary_pct=0.5, use_parallel_residual=False, tie_word_embeddings=True),
    "llama": rotary("llama", tie_word_embeddings=True),
    "llama-wide": rotary("llama", hidden_size=96, head_dim=16),
    "llama-biased": rotary("llama", attention_bias=True, mlp_bias=True),
    "llama-3": rotary("llama", rope_parameters=LLAMA_3),
    "llama-linear": rotary("llama", rope_parameters=LINEAR),
    "mistral": rotary("mistral", sliding_window=None),
    "mistral-long-window": rotary("mistral", sliding_window=64),
    "qwen2": rotary("qwen2", tie_word_embeddings=True),
    "qwen2-untied": rotary("qwen2"),
    "seed_oss": rotary("seed_oss", residual_dropout=0.0),
    "qwen3": rotary("qwen3", tie_word_embeddings=True),
    "qwen3-untied": rotary("qwen3"),
    "qwen3-linear": rotary("qwen3", rope_parameters=LINEAR, tie_word_embeddings=True),
}
# What llama.cpp's own names for them are.
SERVED = [
    ("gpt2", SQUARE, "gpt2"),  # its MLP of 64 is not 4 * 36
    ("gpt2-untied", SQUARE, "gpt2"),
    ("gpt_neox", SQUARE, "gptneox"),
    ("gpt_neox-tied", SQUARE, "gptneox"),
    ("llama", DECOUPLED, "llama"),
    ("llama", Architecture.uniform(2, 43, 4, 60, 2), "llama"),  # saved as a mistral
    ("llama-biased", DECOUPLED, "llama"),
    ("llama-3", DECOUPLED, "llama"),
    ("llama-linear", DECOUPLED, "llama"),
    ("mistral", DECOUPLED, "llama"),
    ("mistral-long-window", DECOUPLED, "llama"),
    ("qwen2", Architecture.uniform(2, 48, 4, 60, 2), "qwen2"),
    ("qwen2", DECOUPLED, "seed_oss"),
    ("qwen2-untied", DECOUPLED, "seed_oss"),
    ("qwen3", DECOUPLED, "qwen3"),
    ("qwen3-untied", DECOUPLED, "qwen3"),
    ("qwen3-linear", DECOUPLED, "qwen3"),
    ("llama", BY_LAYER, "deci"),
    ("llama-biased", BY_LAYER, "deci"),
    ("llama-3", BY_LAYER, "deci"),
    ("mistral", BY_LAYER, "deci"),
    ("qwen2", BY_LAYER, "deci"),
    ("qwen2-untied", BY_LAYER, "deci"),
    ("seed_oss", DECOUPLED, "seed_oss"),
    ("seed_oss", BY_LAYER, "deci"),
    ("qwen3", BY_LAYER, "openelm"),
    ("qwen3-linear", BY_LAYER, "openelm"),
]


@cache
def student_of(teacher: str, architecture: Architecture) -> PreTrainedModel:
    model = TEACHERS[teacher]()
    scores = compute_importance(model, family_of(model.config), torch.arange(60).view(4, 15))
    return prune(model, scores, architecture)


@torch.no_grad()
def expected(model: PreTrainedModel, prompts: list[list[int]]) -> Tensor:
    """The log-probabilities of the token after each prompt in transformers, (prompts, vocab)."""
    return torch.stack([model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts])


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The ids of ``count`` tokens after ``prompt`` in transformers, each the most likely one."""
    ids = torch.tensor([prompt])
    end = {"min_new_tokens": count, "suppress_tokens": [END], "pad_token_id": END}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, **end)
    found: list[int] = made[0, len(prompt) :].tolist()
    return found


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without bytes over 127: llama.cpp's server does not report a token that ends inside a character."""
    alphabet = sorted(bytes_to_unicode().values())
    plain = [one if ord(one) < 128 else f"a{place}" for place, one in enumerate(alphabet)]
    words = ["<|endoftext|>", *plain, *(f"w{place}" for place in range(VOCAB - 257))]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, [("w", "0")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("teacher", "sizes", "architecture"), SERVED)
def test_llama_cpp_computes_what_transformers_does(
    teacher: str, sizes: Architecture, architecture: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    student = student_of(teacher, sizes)
    written = write_gguf(student, tokenizer_folder, tmp_path / "student.gguf", "f32")
    assert (written.architecture, written.left_tensors) == (architecture, 0)
    prompts = [PROMPT[:length] for length in (1, 4, len(PROMPT))]
    served = llama_cpp.ask(written.path, prompts, 24)
    limit = 4e-3 if "gpt" in teacher else 1e-3  # llama.cpp looks the GELU up in a table in float16
    torch.testing.assert_close(torch.tensor(served.log_probabilities), expected(student, prompts), rtol=0, atol=limit)
    assert served.greedy == greedy(student, PROMPT, 24)


# The most that the log-probabilities of these tiny random models move, in nats.
MOVED = {"f16": 0.02, "bf16": 0.12, "q8_0": 0.3, "q5_1": 1.2, "q5_0": 1.2, "q4_1": 2.5, "q4_0": 2.5}


@pytest.mark.parametrize("kind", MOVED)
def test_the_types_round_and_no_more(kind: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    student = student_of("llama-wide", Architecture.uniform(3, 64, 4, 96, 2))
    written = write_gguf(student, tokenizer_folder, tmp_path / "student.gguf", kind)
    kinds = {one.name: one.tensor_type for one in GGUFReader(written.path).tensors}
    assert {found for name, found in kinds.items() if "norm" not in name} == {TYPES[kind][0]}
    assert (written.left_tensors, written.left_bytes) == (0, 0)
    served = torch.tensor(llama_cpp.ask(written.path, [PROMPT]).log_probabilities)
    moved = (served - expected(student, [PROMPT])).abs().max()
    assert 1e-6 < moved < MOVED[kind]


def test_rows_that_are_no_multiple_of_32_stay_in_f16_and_are_counted(tokenizer_folder: Path, tmp_path: Path) -> None:
    student = student_of("llama-wide", Architecture.uniform(2, 64, 4, 60, 2))
    written = write_gguf(student, tokenizer_folder, tmp_path / "student.gguf", "q4_0")
    kinds = {one.name: one.tensor_type.name for one in GGUFReader(written.path).tensors}
    assert {name for name, found in kinds.items() if found == "F16"} == {f"blk.{n}.ffn_down.weight" for n in range(2)}
    assert (written.left_tensors, written.left_bytes) == (2, 2 * 64 * 60 * 2)
    assert written.bytes == written.path.stat().st_size
    moved = torch.tensor(llama_cpp.ask(written.path, [PROMPT]).log_probabilities) - expected(student, [PROMPT])
    assert moved.abs().max() < MOVED["q4_0"]


@pytest.mark.parametrize(
    ("teacher", "sizes", "words"),
    [
        (make_gpt2, BY_LAYER_GPT, "a gpt2 with sizes by layer"),
        (make_gpt2, Architecture.uniform(2, 40, 3, 64), "heads that do not add up to its width"),
        (rotary("gpt_neox", rotary_pct=0.5), BY_LAYER_GPT, "a gpt_neox with sizes by layer"),
        (rotary("qwen3"), BY_LAYER, "a qwen3 with sizes by layer and an output projection of its own"),
        (rotary("qwen3", attention_bias=True), DECOUPLED, "attention_bias=True is not what llama.cpp's qwen3"),
        (rotary("mistral", sliding_window=16), DECOUPLED, "sliding windows of 16 tokens"),
        (
            rotary("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=0),
            Architecture.uniform(2, 48, 4, 60, 2),
            "sliding windows of 16 tokens",
        ),
        (rotary("llama", hidden_act="gelu"), DECOUPLED, "hidden_act='gelu'"),
        (rotary("llama", rope_parameters={**LINEAR, "rope_type": "dynamic"}), DECOUPLED, "type 'dynamic'"),
        (rotary("qwen3", rope_parameters=LLAMA_3), DECOUPLED, "type 'llama3' are not written for llama.cpp's qwen3"),
        (lambda: make_gpt2(activation_function="relu"), SQUARE, "activation_function='relu'"),
        (rotary("gpt_neox", rotary_pct=0.25), SQUARE, "turn 3 channels"),
        (rotary("gpt_neox", rotary_pct=0.5, attention_bias=False), SQUARE, "attention_bias=False"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused_by_name(
    teacher: Made, sizes: Architecture, words: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = teacher()
    scores = compute_importance(model, family_of(model.config), torch.arange(60).view(4, 15))
    with pytest.raises(InputError, match=re.escape(words)) as refused:
        write_gguf(prune(model, scores, sizes), tokenizer_folder, tmp_path / "student.gguf", "f16")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_square_qwen2_is_needed_for_the_architecture_of_that_name() -> None:
    with pytest.raises(InputError, match="save it as a seed_oss"):
        layout_of(make_decoder("qwen2"))  # 6 heads of 12, hidden size 48


def test_an_older_file_is_replaced_and_nothing_else_is(tokenizer_folder: Path, tmp_path: Path) -> None:
    student, path = student_of("llama", DECOUPLED), tmp_path / "student.gguf"
    sizes = [write_gguf(student, tokenizer_folder, path, kind).bytes for kind in ("f32", "f16")]
    assert sizes[0] > sizes[1] == path.stat().st_size
    path.write_text("dear")
    with pytest.raises(InputError, match="is no GGUF file and would be replaced"):
        write_gguf(student, tokenizer_folder, path, "f32")
    assert path.read_text() == "dear"


def test_a_tensor_that_was_written_wrong_is_found(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trials.export.gguf.tensors.quantize", lambda numbers, _: numbers * 1.2)
    with pytest.raises(InputError, match="differs by"):
        write_gguf(student_of("llama", DECOUPLED), tokenizer_folder, tmp_path / "student.gguf", "f32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_numbers_that_a_type_does_not_hold_are_refused_and_rows_that_are_nearly_0_are_not(
    kind: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = make_decoder("llama", hidden_size=96, head_dim=16)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] *= 1e-9  # a token that the teacher never saw
        write_gguf(model, tokenizer_folder, tmp_path / "student.gguf", kind)
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 1e8
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight differs by .* take another --type"):
        write_gguf(model, tokenizer_folder, tmp_path / "other.gguf", kind)
    assert [one.name for one in tmp_path.iterdir()] == ["student.gguf"]
