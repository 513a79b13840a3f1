"""Any causal language model is loaded, prunable or not. Models without a perplexity are rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reading_models import make_gemma2, make_llama
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.evaluate.evaluation import evaluate_texts, positions_of
from trials.families.lookup import family_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune
from trials.teacher.causal_lm import load_causal_lm, resolve_causal_lm

Save = Callable[[PreTrainedModel], Path]


@pytest.fixture
def saved(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Save:
    def save(model: PreTrainedModel) -> Path:
        model.save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize("make", [make_llama, make_gemma2])
def test_a_family_that_need_not_be_prunable(saved: Save, make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    folder = saved(model)
    loaded, tokenizer = load_causal_lm(resolve_causal_lm(str(folder), False), "cpu", "float32", False)
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert tokenizer.decode(tokenizer("a layer")["input_ids"]) == "a layer"
    assert positions_of(loaded.config) == 64


def test_formats(tiny_teacher_folder: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        model, _ = load_causal_lm(tiny_teacher_folder, "cpu", dtype, False)
        assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


def test_code_that_comes_with_a_model_runs_only_when_asked_for(saved: Save, tiny_gpt2: GPT2LMHeadModel) -> None:
    scores = compute_importance(tiny_gpt2, family_of(tiny_gpt2.config), torch.arange(60).view(4, 15))
    student = prune(tiny_gpt2, scores, Architecture(2, 40, (4, 1), (10, 96)))
    folder = saved(student)
    with pytest.raises(InputError, match=r"code of its own, modeling_pruned_gpt2\.py;.*--trust-remote-code"):
        resolve_causal_lm(str(folder), False)
    model, _ = load_causal_lm(resolve_causal_lm(str(folder), True), "cpu", "float32", True)
    assert type(model).__module__.startswith("transformers_modules")
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens).logits, student(tokens).logits)


def test_a_model_of_another_kind_is_refused(saved: Save) -> None:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
    folder = saved(T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)))
    with pytest.raises(InputError, match="'t5' is not a causal language model"):
        resolve_causal_lm(str(folder), False)


def test_a_model_that_looks_ahead_is_refused(saved: Save) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    folder = saved(BertLMHeadModel(BertConfig(**sizes, vocab_size=320, initializer_range=0.5)))
    with pytest.raises(InputError, match="reads the tokens that it should predict"):
        load_causal_lm(resolve_causal_lm(str(folder), False), "cpu", "float32", False)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tiny_teacher_folder: Path) -> None:
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<{number}>" for number in range(100)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"tokenizer has \d+ entries and its embedding 320"):
        load_causal_lm(folder, "cpu", "float32", False)


@pytest.mark.parametrize("config", ["[]", "{", '{"model_type": "no-such-model"}'])
def test_an_unusable_config_is_refused(tmp_path: Path, tiny_teacher_folder: Path, config: str) -> None:
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "model")
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json"):
        resolve_causal_lm(str(folder), False)


def test_a_known_type_needs_no_code_of_its_own(tmp_path: Path, tiny_teacher_folder: Path) -> None:
    """Some checkpoints still contain code from before transformers had their class."""
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "gone.Config"}}))
    assert resolve_causal_lm(str(folder), False) == folder.resolve()


def test_readings_need_no_family(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert evaluate_texts(make_gemma2(), tiny_tokenizer, []) == []
