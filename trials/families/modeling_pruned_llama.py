"""Llama-style decoders with their own number of heads, key/value heads and MLP neurons in each layer.

This file is the whole model: exported checkpoints carry a copy of it, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


@dataclass(kw_only=True)
class SizesByLayer:
    """What the configurations have in common: heads, key/value heads and MLP neurons of every layer, first to last.

    The plain configuration's num_attention_heads and num_key_value_heads are 1 and say nothing here: transformers
    would refuse others that do not divide the hidden size.
    """

    layer_heads: list[int]
    layer_kv_heads: list[int]
    layer_mlp: list[int]


class LayersBySize:
    """What the models have in common: the layers of the stock model, each built to its own sizes."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        layers = self.model.layers  # type: ignore[attr-defined]
        built = [type(layer)(_of_layer(config, place), place) for place, layer in enumerate(layers)]
        self.model.layers = nn.ModuleList(built)  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]


def _of_layer(config: PretrainedConfig, place: int) -> PretrainedConfig:
    own = copy.copy(config)
    own.num_attention_heads = config.layer_heads[place]
    own.num_key_value_heads = config.layer_kv_heads[place]
    own.intermediate_size = config.layer_mlp[place]
    return own


class PrunedLlamaConfig(SizesByLayer, LlamaConfig):  # type: ignore[misc]
    """Llama's configuration with sizes by layer."""

    model_type = "pruned_llama"


class PrunedMistralConfig(SizesByLayer, MistralConfig):  # type: ignore[misc]
    """Mistral's configuration with sizes by layer."""

    model_type = "pruned_mistral"


class PrunedQwen2Config(SizesByLayer, Qwen2Config):  # type: ignore[misc]
    """Qwen2's configuration with sizes by layer."""

    model_type = "pruned_qwen2"


class PrunedQwen3Config(SizesByLayer, Qwen3Config):  # type: ignore[misc]
    """Qwen3's configuration with sizes by layer."""

    model_type = "pruned_qwen3"


class PrunedLlamaForCausalLM(LayersBySize, LlamaForCausalLM):  # type: ignore[misc]
    """Use it as any Llama."""

    config_class = PrunedLlamaConfig


class PrunedMistralForCausalLM(LayersBySize, MistralForCausalLM):  # type: ignore[misc]
    """Use it as any Mistral."""

    config_class = PrunedMistralConfig


class PrunedQwen2ForCausalLM(LayersBySize, Qwen2ForCausalLM):  # type: ignore[misc]
    """Use it as any Qwen2."""

    config_class = PrunedQwen2Config


class PrunedQwen3ForCausalLM(LayersBySize, Qwen3ForCausalLM):  # type: ignore[misc]
    """Use it as any Qwen3."""

    config_class = PrunedQwen3Config


# Written into the configuration of every saved checkpoint, together with a copy of this file.
for _config, _model in (
    (PrunedLlamaConfig, PrunedLlamaForCausalLM),
    (PrunedMistralConfig, PrunedMistralForCausalLM),
    (PrunedQwen2Config, PrunedQwen2ForCausalLM),
    (PrunedQwen3Config, PrunedQwen3ForCausalLM),
):
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForCausalLM")
