"""The shape of a model, from its configuration alone, by ``model_type``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search_spaces.errors import InputError
from search_spaces.shape import ModelShape

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import GPT2Config, GPTNeoXConfig, PretrainedConfig

QKV_BIAS = {"qwen2"}  # model types that have these biases although their configuration does not say so
BIASED = {"gpt_neox", "qwen2", "seed_oss"}  # model types of which llama.cpp has these biases
TANH_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # llama.cpp has one GELU
SILU = ("silu", "swish")
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
    shape = read(config)
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return replace(shape, windowed=windowed, unserved=_unserved(config, shape))


def _unserved(config: PretrainedConfig, shape: ModelShape) -> str:
    """What llama.cpp does not compute of a model with ``config``; the writers of `trials.export.gguf` refuse it."""
    gpt = config.model_type in ("gpt2", "gpt_neox")
    activation = config.activation_function if config.model_type == "gpt2" else config.hidden_act
    if activation not in (TANH_GELU if gpt else SILU):
        return f"the activation {activation}"
    if config.model_type == "gpt2":
        return "" if config.scale_attn_weights else "attention that is not scaled"
    if shape.qkv_bias != (config.model_type in BIASED) and config.model_type in ("gpt_neox", "qwen3"):
        return f"attention_bias={config.attention_bias}"
    if config.model_type == "seed_oss" and (shape.output_bias or shape.mlp_bias or not shape.qkv_bias):
        return "other biases than those of queries, keys and values"
    return _window(config) or _rotary(config, shape)


def _window(config: PretrainedConfig) -> str:
    """The sliding window of a model in words, if a text can be longer."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    windowed = config.model_type == "mistral" if kinds is None else "sliding_attention" in kinds
    short = windowed and window is not None and window < config.max_position_embeddings
    return f"sliding windows of {window:,} tokens" if short else ""


def _rotary(config: PretrainedConfig, shape: ModelShape) -> str:
    """The rotary positions of a model in words, if llama.cpp has none like them."""
    parameters = config.rope_parameters
    kind, share = parameters.get("rope_type", "default"), parameters.get("partial_rotary_factor", 1.0)
    known = ("default", "linear", "llama3") if config.model_type in ("llama", "mistral") else ("default", "linear")
    if kind not in known:
        return f"rotary positions of type {kind}"
    turned = int(shape.head_dim * share)
    return f"positions in {turned} channels of a head, an odd number" if turned % 2 else ""


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
