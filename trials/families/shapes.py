"""The shape of a model, from its configuration alone, by ``model_type``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.errors import InputError
from search_spaces.shape import ModelShape

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import GPT2Config, GPTNeoXConfig, PretrainedConfig

QKV_BIAS = {"qwen2"}  # model types that have these biases although their configuration does not say so
HEAD_NORMS = {"qwen3": 2}  # number of norms on a head's queries and keys


def shape_of(config: PretrainedConfig) -> ModelShape:
    """The shape of ``config``. Raises InputError that names the supported model types when it cannot be pruned."""
    try:
        read = SHAPES[config.model_type]
    except KeyError:
        raise InputError(
            f"model type {config.model_type!r}: cannot be pruned; take a model of type {', '.join(SHAPES)}"
        ) from None
    return read(config)


def _gpt2(config: GPT2Config) -> ModelShape:
    """The shape of ``config``. Raises InputError for cross-attention and for attention scaled by the layer index."""
    for option in ("add_cross_attention", "scale_attn_by_inverse_layer_idx"):
        if getattr(config, option):
            raise InputError(f"model with {option}=True: cannot be pruned; take a GPT-2 without it")
    if config.n_embd % config.n_head:
        raise InputError(
            f"model with n_embd={config.n_embd}: not a multiple of its n_head={config.n_head}; correct its config.json"
        )
    return ModelShape(
        family="gpt2",
        layers=config.n_layer,
        hidden=config.n_embd,
        heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        mlp=config.n_inner or 4 * config.n_embd,
        vocab=config.vocab_size,
        positions=config.n_positions,
        tied=config.tie_word_embeddings,
    )


def _gpt_neox(config: GPTNeoXConfig) -> ModelShape:
    """The shape of ``config``."""
    return ModelShape(
        family="gpt_neox",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        mlp=config.intermediate_size,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
        tied=config.tie_word_embeddings,
        learned_positions=False,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
    )


def _llama(config: PretrainedConfig) -> ModelShape:
    """The shape of ``config``. Raises InputError when only some of its layers have a sliding window."""
    if len(kinds := set(getattr(config, "layer_types", None) or ["full_attention"])) > 1:
        raise InputError(
            f"model with layer_types {sorted(kinds)}: cannot be pruned; take one whose layers have the same type"
        )
    biased, gated = getattr(config, "attention_bias", False), getattr(config, "mlp_bias", False)
    plain = config.model_type != "llama" or not (biased or gated)
    return ModelShape(
        family=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        mlp=config.intermediate_size,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
        tied=config.tie_word_embeddings,
        group=config.num_attention_heads // config.num_key_value_heads,
        learned_positions=False,
        mlp_matrices=3,
        norm_vectors=1,
        head_norms=HEAD_NORMS.get(config.model_type, 0),
        qkv_bias=biased or config.model_type in QKV_BIAS,
        output_bias=biased,
        mlp_bias=gated,
        stock="any" if plain else "divisible",
    )


SHAPES = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gpt_neox": _gpt_neox,
}
