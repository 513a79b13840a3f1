"""Teachers small enough for any test, made in the process from a seed."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; without this, one that does by mistake waits for minutes

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

settings.register_profile("shared machine", deadline=None)  # an example is not wrong because a neighbour is busy
settings.load_profile("shared machine")
torch.set_num_threads(1)  # on models this small, threads that wait for each other cost up to 30 times the work

VOCAB = 320  # 256 bytes, <|endoftext|> and a few merges
TEXT = (
    "The teacher is pruned to a smaller architecture and distilled for a short while. "
    "A layer, a head or a neuron stays when it matters. def prune(teacher, scores): return student\n"
)


@pytest.hookimpl(trylast=True)  # after those are left out that are not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first. Otherwise one process would still run such a file when all others are done."""
    slow = {item.path for item in items if item.get_closest_marker("fault_slow")}
    items.sort(key=lambda item: item.path not in slow)


def make_gpt2(seed: int = 0, **changes: object) -> GPT2LMHeadModel:
    """A random GPT-2 in eval mode without gradients: 3 layers, hidden 48, 4 heads of 12, MLP 96, 64 positions.

    No weight is at its usual start: biases are not 0 and LayerNorm weights are not 1, so that a wrong slice of any
    of them shows in the logits.
    """
    sizes = {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_inner": 96, "vocab_size": VOCAB, "n_positions": 64}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, **ids, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            norm = ".ln_" in name and name.endswith("weight")
            weight.copy_(1 + 0.3 * noise if norm else noise * (0.3 if weight.dim() == 1 else len(weight) ** -0.5))
        for embedding in (model.transformer.wte, model.transformer.wpe, model.lm_head):
            embedding.weight.copy_(0.5 * torch.randn(embedding.weight.shape, generator=generator))
    return model.eval().requires_grad_(False)


def make_decoder(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random decoder with rotary positions in eval mode without gradients: 3 layers, hidden 48, MLP 96.

    Four heads of 12, or for Llama-style types six on three key/value heads. No weight is at its usual start.
    """
    sizes = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 96, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12}
    heads = {"num_attention_heads": 4} if model_type == "gpt_neox" else heads
    ids = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **heads, **ids, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            norm = "norm" in name and name.endswith("weight")
            weight.copy_(1 + 0.3 * noise if norm else noise * (0.3 if weight.dim() == 1 else weight.shape[1] ** -0.5))
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight.copy_(0.2 * torch.randn(embedding.weight.shape, generator=generator))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_gpt2() -> GPT2LMHeadModel:
    """The model of `make_gpt2`; shared by all tests, so do not change it."""
    return make_gpt2()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `VOCAB` entries, any text to tokens and back; <|endoftext|> is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


@pytest.fixture(scope="session")
def tiny_teacher_folder(
    tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint folder of `tiny_gpt2` with its tokenizer; shared by all tests, so do not change it."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    tiny_gpt2.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def own_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that joins digits and newlines, which Qwen's own rules keep apart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["In 1984 there were 13888 of them. 1984 13888 1984 13888"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
