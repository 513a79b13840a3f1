"""The shape of a model, from its configuration alone, by ``model_type``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.errors import InputError
from search_spaces.shape import ModelShape

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import GPT2Config, GPTNeoXConfig, PretrainedConfig

QKV_BIAS = {"qwen2"}  # model types that have these biases although their configuration does not say so
HEAD_NORMS = {"qwen3": 2}  # number of norms on a head's queries and keys
LayerSettings = Mapping[str, Sequence[Any]]
"""Settings with one value for each layer of a student, by name, such as ``layer_types``. See `settings_of`."""

NOT_BY_LAYER = ("token_id", "token_ids")  # ends of names of lists that may be as long as a model is deep


def shape_of(config: PretrainedConfig) -> ModelShape:
    """The shape of ``config``.

    Raises InputError when it cannot be pruned. The error names the supported model types, or the setting that is in the
    way.
    """
    try:
        read = SHAPES[config.model_type]
    except KeyError:
        raise InputError(
            f"model type {config.model_type!r}: cannot be pruned; take a model of type {', '.join(SHAPES)}"
        ) from None
    if sizes := config.to_dict().get("per_layer_config"):
        raise InputError(
            f"model with per_layer_config for layers {', '.join(map(str, sizes))}: layers of different sizes cannot be "
            "pruned; take one whose layers are alike"
        )
    return read(config)


def by_layer(config: PretrainedConfig) -> dict[str, list[Any]]:
    """The settings of ``config`` with one value for each layer, by name. These are all lists as long as it is deep."""
    return {
        name: list(value)
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple)
        and len(value) == config.num_hidden_layers
        and not name.endswith(NOT_BY_LAYER)
    }


def settings_of(config: PretrainedConfig, layers: Iterable[int]) -> dict[str, list[Any]]:
    """The settings by layer of a student of a model with ``config`` that keeps the ``layers``."""
    kept = list(layers)
    return {name: [each[layer] for layer in kept] for name, each in by_layer(config).items()}


def _check_multiple(config: PretrainedConfig, name: str, of: str) -> None:
    """Raise InputError when the size called ``name`` is not a multiple of the size ``of``."""
    size, part = getattr(config, name), getattr(config, of)
    if size % part:
        raise InputError(f"model with {name}={size}: not a multiple of its {of}={part}; correct its config.json")


def _gpt2(config: GPT2Config) -> ModelShape:
    """The shape of ``config``. Raises InputError for cross-attention and for attention scaled by the layer index."""
    for option in ("add_cross_attention", "scale_attn_by_inverse_layer_idx"):
        if getattr(config, option):
            raise InputError(f"model with {option}=True: cannot be pruned; take a GPT-2 without it")
    _check_multiple(config, "n_embd", "n_head")
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
    _check_multiple(config, "hidden_size", "num_attention_heads")
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
    """The shape of ``config``."""
    _check_multiple(config, "num_attention_heads", "num_key_value_heads")
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
        output_bias=getattr(config, "attention_out_bias", biased),
        mlp_bias=gated,
        stock="any" if plain else "divisible",
    )


SHAPES = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "seed_oss": _llama,
    "gpt_neox": _gpt_neox,
}
