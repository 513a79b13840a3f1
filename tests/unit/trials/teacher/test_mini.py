"""The embedded teacher: small enough to ship, plain GPT-2, and better than a compressor on held-out text."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

import trials
from benchmarks.mini.evaluation import entropy_bits, held_out_bits, total_nats
from trials.text.stdlib_text import Document, validation_documents

MINI = Path(trials.__file__).parent / "mini"


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return AutoModelForCausalLM.from_pretrained(MINI).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MINI)


@pytest.fixture(scope="module")
def held_out() -> tuple[Document, ...]:
    return tuple(validation_documents())


def test_the_folder_is_at_most_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in MINI.iterdir()) < 16_000_000


def test_it_is_a_plain_gpt2_which_computes_in_float32(model: GPT2LMHeadModel) -> None:
    assert type(model) is GPT2LMHeadModel
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "def f(x):\n\treturn x  # naïve — 日本\x00\r\n   \n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) == 4096
    assert tokenizer.eos_token == "<|endoftext|>"


def test_it_predicts_held_out_text_better_than_xz_packs_it(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, held_out: tuple[Document, ...]
) -> None:
    content = "".join(document.text for document in held_out).encode()
    packed = 8.0 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) / len(content)
    middles = [text[len(text) // 2 :][:1600] for text in (document.text for document in held_out) if len(text) > 2000]
    needed = held_out_bits(model, tokenizer, middles) / len("".join(middles).encode())
    assert needed < packed < entropy_bits(content) / len(content)


def test_every_token_is_counted_once_however_documents_are_cut() -> None:
    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 4096)})

    documents = [list(range(1, length + 1)) for length in (1, 7, 8, 9, 16, 30)]
    for length in (4, 8, 256):
        nats = total_nats(Uniform(), documents, length, end=0)
        assert math.isclose(nats, math.log(4096) * sum(map(len, documents)), rel_tol=1e-5)


def test_entropy_of_known_symbols() -> None:
    assert entropy_bits([7, 7, 7]) == 0
    assert entropy_bits(b"abcd") == 8
    assert entropy_bits([0, 0, 1, 2]) == 6


def test_the_card_says_what_it_must() -> None:
    card = (MINI / "README.md").read_text("utf-8")
    for word in ("held out", "bits per byte", "xz", "gzip", "unigram", "steps", "seed", "PSF", "benchmarks.mini.train"):
        assert word in card
    assert json.loads((MINI / "config.json").read_text())["model_type"] == "gpt2"
