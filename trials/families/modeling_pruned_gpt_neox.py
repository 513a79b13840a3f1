"""GPT-NeoX with its own number of heads and MLP neurons in each layer, and a width free of both.

This file is the whole model: exported checkpoints carry a copy of it, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy

from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXLayer


class PrunedGPTNeoXConfig(GPTNeoXConfig):  # type: ignore[misc]
    """A GPT-NeoX configuration with sizes by layer.

    ``head_dim`` is the width of one head; ``layer_heads`` and ``layer_mlp`` hold the heads and the MLP neurons of
    each layer. The plain num_attention_heads is 1 and says nothing here: transformers would refuse one that does
    not divide the hidden size.
    """

    model_type = "pruned_gpt_neox"
    head_dim: int
    layer_heads: list[int]
    layer_mlp: list[int]


class PrunedGPTNeoXAttention(GPTNeoXAttention):  # type: ignore[misc]
    """Self-attention whose heads need not add up to the width of the residual stream."""

    def __init__(self, config: PrunedGPTNeoXConfig, layer_idx: int) -> None:
        inner = config.layer_heads[layer_idx] * config.head_dim
        square = copy.copy(config)  # stock GPT-NeoX derives the width of a head from these two
        square.hidden_size, square.num_attention_heads = inner, config.layer_heads[layer_idx]
        super().__init__(square, layer_idx)
        self.config = config
        self.query_key_value = nn.Linear(config.hidden_size, 3 * inner, bias=config.attention_bias)
        self.dense = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)


class PrunedGPTNeoXForCausalLM(GPTNeoXForCausalLM):  # type: ignore[misc]
    """Use it as any GPT-NeoX: its layers are stock ones, each built to its own sizes."""

    config_class = PrunedGPTNeoXConfig

    def __init__(self, config: PrunedGPTNeoXConfig) -> None:
        layers, config.num_hidden_layers = config.num_hidden_layers, 0  # without stock layers, which may not exist
        super().__init__(config)
        config.num_hidden_layers = layers
        self.gpt_neox.layers = nn.ModuleList([_layer(config, place) for place in range(layers)])
        self.post_init()


def _layer(config: PrunedGPTNeoXConfig, place: int) -> GPTNeoXLayer:
    own = copy.copy(config)
    own.num_attention_heads = 1  # of the stock attention, which makes way for ours
    own.intermediate_size = config.layer_mlp[place]
    layer = GPTNeoXLayer(own, place)
    layer.attention = PrunedGPTNeoXAttention(config, place)
    return layer


# Written into the configuration of every saved checkpoint, together with a copy of this file.
PrunedGPTNeoXConfig.register_for_auto_class()
PrunedGPTNeoXForCausalLM.register_for_auto_class("AutoModelForCausalLM")
