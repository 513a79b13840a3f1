"""GPT-NeoX whose number of heads and MLP neurons differs by layer and does not depend on the width.

This file is complete: exported checkpoints contain a copy of it, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXLayer


class PrunedGPTNeoXConfig(GPTNeoXConfig):  # type: ignore[misc]
    """A GPT-NeoX configuration with sizes by layer.

    ``head_dim`` is the width of one head. ``layer_heads`` and ``layer_mlp`` hold the heads and the MLP neurons of each
    layer. num_attention_heads is always 1 and has no meaning here, because transformers rejects a number that does not
    divide the hidden size.
    """

    model_type = "pruned_gpt_neox"
    head_dim: int
    layer_heads: list[int]
    layer_mlp: list[int]

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("per_layer_config", None)  # the lists above say the same
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The configuration, with the sizes of the layers also as transformers' ``per_layer_config``."""
        sizes = zip(self.layer_heads, self.layer_mlp, strict=True)
        layers = {
            str(place): {"num_attention_heads": heads, "head_dim": self.head_dim, "intermediate_size": mlp}
            for place, (heads, mlp) in enumerate(sizes)
        }
        return {**super().to_dict(), "per_layer_config": layers}


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
    """The causal language model. Use it like any GPT-NeoX. Each layer is a stock layer with its own sizes."""

    config_class = PrunedGPTNeoXConfig

    def __init__(self, config: PrunedGPTNeoXConfig) -> None:
        layers, config.num_hidden_layers = config.num_hidden_layers, 0  # builds no stock layers, which may be invalid
        super().__init__(config)
        config.num_hidden_layers = layers
        self.gpt_neox.layers = nn.ModuleList([_layer(config, place) for place in range(layers)])
        self.post_init()


def _layer(config: PrunedGPTNeoXConfig, place: int) -> GPTNeoXLayer:
    own = copy.copy(config)
    own.num_attention_heads = 1  # for the stock attention, which is replaced below
    own.intermediate_size = config.layer_mlp[place]
    layer = GPTNeoXLayer(own, place)
    layer.attention = PrunedGPTNeoXAttention(config, place)
    return layer


# Every saved checkpoint refers to these classes in its configuration and contains a copy of this file.
PrunedGPTNeoXConfig.register_for_auto_class()
PrunedGPTNeoXForCausalLM.register_for_auto_class("AutoModelForCausalLM")
