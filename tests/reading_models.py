"""Small causal language models of several families to be read, and tokenizers for them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from conftest import VOCAB, make_gpt2
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def make_llama(**changes: object) -> LlamaForCausalLM:
    """A random Llama whose query heads share key/value heads."""
    return _drawn(LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})))


def make_gemma2() -> Gemma2ForCausalLM:
    """A random Gemma 2: it caps its logits after the projection."""
    return _drawn(Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=2.0)))


def certain_gpt2(pairs: Iterable[tuple[int, int]], weight: float = 10.0) -> GPT2LMHeadModel:
    """A GPT-2 without layers that is certain which token follows another one, for each of ``pairs``.

    At a ``weight`` of 0.2 it only finds that token the likeliest, at a probability of a tenth.
    """
    model = make_gpt2(n_layer=0, n_embd=VOCAB, n_head=4, tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.wte.weight.copy_(torch.eye(VOCAB))
        for before, after in pairs:
            model.lm_head.weight[after, before] = weight
    return model


def beginning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that puts its begin-of-text token before every text, as Llama's does."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    begin = tokenizer.bos_token
    backend.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=begin, eos_token=begin, unk_token=begin)


def _drawn(model: PreTrainedModel) -> PreTrainedModel:
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=numbers)
            weight.copy_(1 + 0.3 * noise if weight.dim() == 1 else 0.4 * noise)
    return model.eval().requires_grad_(False)
