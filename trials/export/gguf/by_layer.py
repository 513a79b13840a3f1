"""Students with sizes by layer: as llama.cpp's ``deci``, and as its ``openelm`` where queries and keys have norms.

These two architectures read the numbers of heads and of MLP neurons as lists with an entry for each layer.
"""

from __future__ import annotations

from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter
from transformers import PreTrainedModel

from search_spaces.errors import InputError
from trials.export.gguf.families import (
    Layout,
    Named,
    check_llama_style,
    describe_llama_style,
    head_dim_of,
    own_weights,
    renamed,
    require,
)
from trials.export.gguf.rotary import interleaved, rotary_factors

PARTS = ("q_proj", "k_proj", "v_proj")


def _describe(writer: GGUFWriter, config: Any) -> None:
    describe_llama_style(writer, config, config.layer_heads, config.layer_kv_heads, config.layer_mlp)


def _deci_tensors(model: PreTrainedModel) -> Named:
    head_dim = head_dim_of(model.config)
    yield from rotary_factors(model.config, head_dim)
    for name, weight in renamed(MODEL_ARCH.DECI, model.config.num_hidden_layers, own_weights(model)):
        yield name, interleaved(weight, head_dim) if ".attn_q." in name or ".attn_k." in name else weight


def _check_openelm(config: Any) -> None:
    check_llama_style(config, "openelm")
    require(config, "attention_bias", (False,), "openelm")
    if not config.tie_word_embeddings:
        raise InputError(
            "GGUF: a qwen3 with sizes by layer and an output projection of its own: llama.cpp's openelm has none; "
            "export best_stock, whose layers are alike, or search with a space of uniform sizes"
        )


def _openelm_tensors(model: PreTrainedModel) -> Named:
    """q, k and v of a layer are one tensor."""
    single = ((name, one) for name, one in own_weights(model) if not any(part in name for part in PARTS))
    yield from renamed(MODEL_ARCH.OPENELM, model.config.num_hidden_layers, single)
    for place, layer in enumerate(model.model.layers):
        parts = [layer.self_attn.get_submodule(part).weight for part in PARTS]
        yield f"blk.{place}.attn_qkv.weight", torch.cat(parts)


_DECI = Layout(MODEL_ARCH.DECI, lambda config: check_llama_style(config, "deci"), _describe, _deci_tensors)
BY_LAYER = {
    "pruned_llama": _DECI,
    "pruned_mistral": _DECI,
    "pruned_qwen2": _DECI,
    "pruned_seed_oss": _DECI,
    "pruned_qwen3": Layout(MODEL_ARCH.OPENELM, _check_openelm, _describe, _openelm_tensors),
}
