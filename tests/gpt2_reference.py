"""GPT-2 written out a second time, in float64 and with masks instead of slices: what a pruned model must equal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from trials.families.base import Kept


@dataclass
class Trace:
    """What the scores are made of, for one batch: each entry is (B, T, ...), in the order of computation."""

    norms: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)  # (B, T, heads, head_dim)
    mlp: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)  # before each layer, and after the last


def everything(model: GPT2LMHeadModel) -> Kept:
    """The choice that keeps the whole model."""
    config = model.config
    layers = torch.arange(config.n_layer)
    heads, mlp = torch.arange(config.n_head), torch.arange(config.n_inner)
    by_layer = (heads,) * len(layers)
    return Kept(layers, torch.arange(config.n_embd), by_layer, by_layer, (mlp,) * len(layers))


def masked_logits(model: GPT2LMHeadModel, tokens: Tensor, kept: Kept, trace: Trace | None = None) -> Tensor:
    """Logits (B, T, vocab) of ``model`` where all that is not kept is multiplied by zero.

    A dropped channel is zero in the embeddings, and nothing is ever written to it; LayerNorm takes its mean and
    variance over the kept channels, which is what masking means for it. Dropped heads and neurons have no output.
    A dropped layer adds nothing to the residual stream.
    """
    trace = trace or Trace()
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    channels = _mask(model.config.n_embd, kept.hidden)

    def norm(values: Tensor, name: str) -> Tensor:
        mean = (values * channels).sum(-1, keepdim=True) / channels.sum()
        centred = (values - mean) * channels
        deviation = (centred.square().sum(-1, keepdim=True) / channels.sum() + model.config.layer_norm_epsilon).sqrt()
        output = (centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]) * channels
        trace.norms.append(output)
        return output

    def product(values: Tensor, name: str) -> Tensor:
        return values @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    places = torch.arange(tokens.shape[1])
    stream = (weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][places]) * channels
    for place, layer in enumerate(kept.layers.tolist()):
        trace.residual.append(stream)
        name = f"transformer.h.{layer}"
        qkv = product(norm(stream, f"{name}.ln_1"), f"{name}.attn.c_attn")
        heads = _attention(qkv, model.config.n_head) * _mask(model.config.n_head, kept.heads[place])[:, None]
        trace.heads.append(heads)
        stream = stream + product(heads.flatten(2), f"{name}.attn.c_proj") * channels
        neurons = _gelu(product(norm(stream, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        neurons = neurons * _mask(model.config.n_inner, kept.mlp[place])
        trace.mlp.append(neurons)
        stream = stream + product(neurons, f"{name}.mlp.c_proj") * channels
    trace.residual.append(stream)
    return norm(stream, "transformer.ln_f") @ weights["lm_head.weight"].T


def _mask(size: int, kept: Tensor) -> Tensor:
    mask = torch.zeros(size, dtype=torch.float64)
    mask[kept] = 1
    return mask


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """Outputs (B, T, heads, head_dim) of causal attention."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def _gelu(values: Tensor) -> Tensor:
    return 0.5 * values * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (values + 0.044715 * values**3)))
