"""The families whose layers are alike: which architecture of llama.cpp they are, its settings and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.errors import InputError
from trials.export.gguf.rotary import check_rotary, describe_rotary, interleaved, rotary_factors

Named = Iterator[tuple[str, Tensor]]
TANH_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # llama.cpp has one, from a table in float16


@dataclass(frozen=True)
class Layout:
    """How a kind of model is written.

    ``architecture`` is llama.cpp's. ``check(config)`` raises InputError for what llama.cpp would compute otherwise.
    ``describe(writer, config)`` writes the settings. ``tensors(model)`` yields all tensors by their names in the file.
    """

    architecture: MODEL_ARCH
    check: Callable[[Any], None]
    describe: Callable[[GGUFWriter, Any], None]
    tensors: Callable[[PreTrainedModel], Named]

    @property
    def name(self) -> str:
        """The architecture's name in a file."""
        return MODEL_ARCH_NAMES[self.architecture]


def renamed(architecture: MODEL_ARCH, depth: int, named: Iterable[tuple[str, Tensor]]) -> Named:
    """``named`` tensors of transformers by llama.cpp's names. Raises InputError for one that it has no name for."""
    names = get_tensor_name_map(architecture, depth)
    for name, weight in named:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InputError(f"GGUF: llama.cpp's {MODEL_ARCH_NAMES[architecture]} has no tensor for {name}")
        yield found, weight


def own_weights(model: PreTrainedModel, tied_output: bool = False) -> Named:
    """Every parameter of ``model`` once. ``tied_output`` repeats a tied embedding as the output projection."""
    yield from model.named_parameters()
    if tied_output and model.config.tie_word_embeddings:
        yield "lm_head.weight", model.get_output_embeddings().weight


def require(config: Any, name: str, allowed: Iterable[Any], architecture: str) -> None:
    """Raise InputError when the setting ``name`` of ``config`` is none that llama.cpp's ``architecture`` computes."""
    value, known = getattr(config, name, None), list(allowed)
    if value not in known:
        raise InputError(
            f"GGUF: {name}={value!r} is not what llama.cpp's {architecture} computes "
            f"({' or '.join(map(repr, known))}); export another format"
        )


def describe_sizes(writer: GGUFWriter, config: Any) -> None:
    """The settings that every architecture has."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_vocab_size(config.vocab_size)


def check_no_window(config: Any, architecture: str) -> None:
    """Raise InputError for layers that attend to their last tokens only, if a text can be longer than those."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    windowed = config.model_type.endswith("mistral") if kinds is None else "sliding_attention" in kinds
    if windowed and window is not None and window < config.max_position_embeddings:
        raise InputError(
            f"GGUF: sliding windows of {window:,} tokens: llama.cpp's {architecture} attends to all tokens; "
            "export another format"
        )


def _check_gpt2(config: Any) -> None:
    require(config, "activation_function", TANH_GELU, "gpt2")
    require(config, "scale_attn_weights", (True,), "gpt2")


def _describe_gpt2(writer: GGUFWriter, config: Any) -> None:
    describe_sizes(writer, config)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)  # llama.cpp's own converter takes 4 * n_embd
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _gpt2_tensors(model: PreTrainedModel) -> Named:
    for name, weight in renamed(MODEL_ARCH.GPT2, model.config.n_layer, own_weights(model)):
        inner = weight.dim() == 2 and name.startswith("blk.")
        yield name, weight.T if inner else weight  # Conv1D stores (inputs, outputs)


def _check_gpt_neox(config: Any) -> None:
    require(config, "hidden_act", TANH_GELU, "gptneox")
    require(config, "attention_bias", (True,), "gptneox")
    check_rotary(config, "gptneox", _turned(config))


def _describe_gpt_neox(writer: GGUFWriter, config: Any) -> None:
    describe_sizes(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    describe_rotary(writer, config, _turned(config))


def _turned(config: Any) -> int:
    """The channels of a GPT-NeoX head that positions turn."""
    share: float = config.rope_parameters.get("partial_rotary_factor", 1.0)
    return int(config.hidden_size // config.num_attention_heads * share)


def _gpt_neox_tensors(model: PreTrainedModel) -> Named:
    """q, k and v are adjacent in transformers for each head; llama.cpp wants q of all heads, then k, then v."""
    heads = model.config.num_attention_heads
    for name, weight in renamed(MODEL_ARCH.GPTNEOX, model.config.num_hidden_layers, own_weights(model, True)):
        fused = "attn_qkv" in name
        by_head = weight.reshape(heads, 3, -1, *weight.shape[1:]) if fused else weight
        yield name, by_head.transpose(0, 1).reshape(weight.shape) if fused else weight


def check_llama_style(config: Any, architecture: str) -> None:
    """Raise InputError when ``architecture``, with a gated MLP and RMSNorm, does not compute what ``config`` says."""
    require(config, "hidden_act", ("silu", "swish"), architecture)
    check_no_window(config, architecture)
    check_rotary(config, architecture, head_dim_of(config))


def describe_llama_style(
    writer: GGUFWriter, config: Any, heads: int | list[int], kv_heads: int | list[int], mlp: int | list[int]
) -> None:
    """The settings of an architecture with a gated MLP and RMSNorm. Lists have a number for each layer."""
    describe_sizes(writer, config)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    head_dim = head_dim_of(config)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    describe_rotary(writer, config, head_dim)


def head_dim_of(config: Any) -> int:
    """The width of a head."""
    found: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return found


def _describe_uniform(writer: GGUFWriter, config: Any) -> None:
    describe_llama_style(
        writer, config, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    )


def _llama_tensors(model: PreTrainedModel) -> Named:
    head_dim = head_dim_of(model.config)
    yield from rotary_factors(model.config, head_dim)
    for name, weight in renamed(MODEL_ARCH.LLAMA, model.config.num_hidden_layers, own_weights(model)):
        yield name, interleaved(weight, head_dim) if ".attn_q." in name or ".attn_k." in name else weight


def _like_transformers(architecture: MODEL_ARCH) -> Callable[[PreTrainedModel], Named]:
    return lambda model: renamed(architecture, model.config.num_hidden_layers, own_weights(model))


def _check_qwen2(config: Any) -> None:
    check_llama_style(config, "qwen2")
    if config.hidden_size != head_dim_of(config) * config.num_attention_heads:
        raise InputError(
            f"GGUF: a qwen2 with {config.num_attention_heads} heads of {head_dim_of(config)} and hidden size "
            f"{config.hidden_size}: llama.cpp's qwen2 takes hidden / heads; save it as a seed_oss, as nas.search does"
        )


def _check_seed_oss(config: Any) -> None:
    check_llama_style(config, "seed_oss")
    require(config, "attention_out_bias", (False,), "seed_oss")
    require(config, "mlp_bias", (False,), "seed_oss")


def _check_qwen3(config: Any) -> None:
    check_llama_style(config, "qwen3")
    require(config, "attention_bias", (False,), "qwen3")


_LLAMA = Layout(MODEL_ARCH.LLAMA, lambda config: check_llama_style(config, "llama"), _describe_uniform, _llama_tensors)
UNIFORM = {
    "gpt2": Layout(MODEL_ARCH.GPT2, _check_gpt2, _describe_gpt2, _gpt2_tensors),
    "gpt_neox": Layout(MODEL_ARCH.GPTNEOX, _check_gpt_neox, _describe_gpt_neox, _gpt_neox_tensors),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Layout(MODEL_ARCH.QWEN2, _check_qwen2, _describe_uniform, _like_transformers(MODEL_ARCH.QWEN2)),
    "seed_oss": Layout(
        MODEL_ARCH.SEED_OSS, _check_seed_oss, _describe_uniform, _like_transformers(MODEL_ARCH.SEED_OSS)
    ),
    "qwen3": Layout(MODEL_ARCH.QWEN3, _check_qwen3, _describe_uniform, _like_transformers(MODEL_ARCH.QWEN3)),
}
