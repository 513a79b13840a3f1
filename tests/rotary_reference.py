"""Decoders with rotary positions written out a second time, in float64, with masks instead of slices.

One function for Llama, Mistral, Qwen2, Qwen3 and GPT-NeoX: which biases, norms and gates there are follows from the
names of the weights. Which layers have a window follows from the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trials.families.base import Kept


@dataclass(frozen=True)
class Weights:
    """A model's weights in float64 by name, and how to use them."""

    config: Any
    values: dict[str, Tensor]

    def product(self, inputs: Tensor, name: str) -> Tensor:
        return inputs @ self.values[f"{name}.weight"].T + self.values.get(f"{name}.bias", 0)

    def norm(self, stream: Tensor, name: str, channels: Tensor) -> Tensor:
        """LayerNorm where there is a bias, else RMSNorm, over the channels whose mask is 1."""
        count, bias = channels.sum(), self.values.get(f"{name}.bias")
        if bias is not None:
            stream = (stream - (stream * channels).sum(-1, keepdim=True) / count) * channels
        epsilon = self.config.layer_norm_eps if bias is not None else self.config.rms_norm_eps
        variance = (stream.square() * channels).sum(-1, keepdim=True) / count
        normed = stream * (variance + epsilon).rsqrt() * self.values[f"{name}.weight"]
        return (normed + (0 if bias is None else bias)) * channels


@torch.no_grad()
def masked_logits(model: PreTrainedModel, tokens: Tensor, kept: Kept) -> Tensor:
    """Logits (B, T, vocab) of ``model`` where all that is not kept is multiplied by zero."""
    weights = Weights(model.config, {name: weight.double() for name, weight in model.state_dict().items()})
    neox = model.config.model_type == "gpt_neox"
    channels = _mask(model.config.hidden_size, kept.hidden)
    stream = weights.values["gpt_neox.embed_in.weight" if neox else "model.embed_tokens.weight"][tokens] * channels
    for place, layer in enumerate(kept.layers.tolist()):
        heads = _mask(model.config.num_attention_heads, kept.heads[place])
        neurons = _mask(model.config.intermediate_size, kept.mlp[place])
        stream = (_neox_layer if neox else _llama_layer)(weights, stream, layer, channels, heads, neurons)
    last = weights.norm(stream, "gpt_neox.final_layer_norm" if neox else "model.norm", channels)
    return weights.product(last, "lm_head")


def _llama_layer(w: Weights, stream: Tensor, layer: int, channels: Tensor, heads: Tensor, neurons: Tensor) -> Tensor:
    name = f"model.layers.{layer}"
    normed = w.norm(stream, f"{name}.input_layernorm", channels)
    query, key, value = (
        w.product(normed, f"{name}.self_attn.{part}_proj").unflatten(-1, (-1, w.config.head_dim)) for part in "qkv"
    )
    if f"{name}.self_attn.q_norm.weight" in w.values:
        every = torch.ones(w.config.head_dim, dtype=torch.float64)
        query, key = w.norm(query, f"{name}.self_attn.q_norm", every), w.norm(key, f"{name}.self_attn.k_norm", every)
    query, key = _rotated(query, w.config.head_dim, w.config), _rotated(key, w.config.head_dim, w.config)
    group = w.config.num_attention_heads // w.config.num_key_value_heads
    key, value = key.repeat_interleave(group, 2), value.repeat_interleave(group, 2)
    outputs = _attention(query, key, value, window_of(w.config, layer)) * heads[:, None]
    stream = stream + w.product(outputs.flatten(2), f"{name}.self_attn.o_proj") * channels
    normed = w.norm(stream, f"{name}.post_attention_layernorm", channels)
    gate = torch.nn.functional.silu(w.product(normed, f"{name}.mlp.gate_proj"))
    inner = gate * w.product(normed, f"{name}.mlp.up_proj") * neurons
    return stream + w.product(inner, f"{name}.mlp.down_proj") * channels


def _neox_layer(w: Weights, stream: Tensor, layer: int, channels: Tensor, heads: Tensor, neurons: Tensor) -> Tensor:
    name = f"gpt_neox.layers.{layer}"
    head_dim = w.config.hidden_size // w.config.num_attention_heads
    qkv = w.product(w.norm(stream, f"{name}.input_layernorm", channels), f"{name}.attention.query_key_value")
    query, key, value = qkv.unflatten(-1, (-1, 3 * head_dim)).chunk(3, dim=-1)
    turned = int(head_dim * w.config.rope_parameters["partial_rotary_factor"])
    query, key = _rotated(query, turned, w.config), _rotated(key, turned, w.config)
    outputs = _attention(query, key, value) * heads[:, None]
    attended = w.product(outputs.flatten(2), f"{name}.attention.dense") * channels
    before = stream if w.config.use_parallel_residual else stream + attended
    normed = w.norm(before, f"{name}.post_attention_layernorm", channels)
    inner = torch.nn.functional.gelu(w.product(normed, f"{name}.mlp.dense_h_to_4h")) * neurons
    return stream + attended + w.product(inner, f"{name}.mlp.dense_4h_to_h") * channels


def _mask(size: int, kept: Tensor) -> Tensor:
    mask = torch.zeros(size, dtype=torch.float64)
    mask[kept] = 1
    return mask


def _rotated(heads: Tensor, turned: int, config: Any) -> Tensor:
    """(B, T, heads, head_dim) with the first ``turned`` numbers of each head rotated by its position."""
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    places = torch.arange(heads.shape[1], dtype=torch.float64)[:, None, None] * angles
    first, second = heads[..., :turned].chunk(2, dim=-1)
    cosine, sine = places.cos(), places.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, heads[..., turned:]], dim=-1)


def window_of(config: Any, layer: int) -> int | None:
    """The number of tokens that ``layer`` attends to, its own included; None for all before it."""
    kinds = getattr(config, "layer_types", None)
    windowed = "mistral" in config.model_type if kinds is None else kinds[layer] == "sliding_attention"
    return config.sliding_window if windowed else None


def _attention(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """Outputs (B, T, heads, head_dim) of causal attention, to the last ``window`` tokens if given."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    every = torch.ones(scores.shape[-2:], dtype=torch.bool)
    hidden = every.triu(1) if window is None else every.triu(1) | every.tril(-window)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2)
