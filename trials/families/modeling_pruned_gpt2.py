"""GPT-2 whose number of heads and MLP neurons differs by layer and does not depend on the width.

This file is complete: exported checkpoints contain a copy of it, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D


class PrunedGPT2Config(GPT2Config):  # type: ignore[misc]
    """A GPT-2 configuration with sizes by layer.

    ``head_dim`` is the width of one head. ``layer_heads`` and ``layer_mlp`` hold the heads and the MLP neurons of each
    of the ``n_layer`` layers. The defaults are plain GPT-2's.
    """

    model_type = "pruned_gpt2"

    def __init__(
        self,
        head_dim: int | None = None,
        layer_heads: list[int] | None = None,
        layer_mlp: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("per_layer_config", None)  # the lists say the same
        super().__init__(**kwargs)
        self.head_dim = head_dim or self.n_embd // self.n_head
        self.layer_heads = layer_heads or [self.n_head] * self.n_layer
        self.layer_mlp = layer_mlp or [self.n_inner or 4 * self.n_embd] * self.n_layer
        if not self.n_layer == len(self.layer_heads) == len(self.layer_mlp):
            raise ValueError(f"layer_heads and layer_mlp must have n_layer={self.n_layer} entries each")

    def to_dict(self) -> dict[str, Any]:
        """The configuration, with the sizes of the layers also as transformers' ``per_layer_config``."""
        sizes = zip(self.layer_heads, self.layer_mlp, strict=True)
        layers = {
            str(place): {"n_head": heads, "head_dim": self.head_dim, "n_inner": mlp}
            for place, (heads, mlp) in enumerate(sizes)
        }
        depth = {"num_hidden_layers": self.n_layer}  # a class that knows no type, such as AutoTokenizer's, counts by it
        return {**super().to_dict(), **depth, "per_layer_config": layers}


class PrunedGPT2Attention(GPT2Attention):  # type: ignore[misc]
    """Self-attention whose heads need not add up to the width of the residual stream."""

    def __init__(self, config: PrunedGPT2Config, layer_idx: int) -> None:
        heads = config.layer_heads[layer_idx]
        inner = heads * config.head_dim
        square = copy.copy(config)  # stock GPT-2 derives head_dim and the split of q, k, v from these two
        square.n_embd, square.n_head = inner, heads
        super().__init__(square, layer_idx=layer_idx)
        self.config = config
        self.c_attn = Conv1D(3 * inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, inner)


class PrunedGPT2Block(GPT2Block):  # type: ignore[misc]
    """One layer with its own sizes; the forward pass is stock GPT-2's."""

    def __init__(self, config: PrunedGPT2Config, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = PrunedGPT2Attention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config.layer_mlp[layer_idx], config)


class PrunedGPT2Model(GPT2Model):  # type: ignore[misc]
    """The decoder without its output projection."""

    config_class = PrunedGPT2Config
    _no_split_modules = ("PrunedGPT2Block",)

    def __init__(self, config: PrunedGPT2Config) -> None:
        super(GPT2Model, self).__init__(config)  # skips GPT2Model's own __init__, which would build stock layers
        self.embed_dim = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([PrunedGPT2Block(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()


class PrunedGPT2LMHeadModel(GPT2LMHeadModel):  # type: ignore[misc]
    """The causal language model. Use it like any GPT-2."""

    config_class = PrunedGPT2Config
    _no_split_modules = ("PrunedGPT2Block",)

    def __init__(self, config: PrunedGPT2Config) -> None:
        super(GPT2LMHeadModel, self).__init__(config)
        self.transformer = PrunedGPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


# Every saved checkpoint refers to these classes in its configuration and contains a copy of this file.
PrunedGPT2Config.register_for_auto_class()
PrunedGPT2LMHeadModel.register_for_auto_class("AutoModelForCausalLM")
