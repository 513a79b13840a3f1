"""Llama-style decoders whose number of heads, key/value heads and MLP neurons differs by layer.

This file is complete: exported checkpoints contain a copy of it, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

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
    SeedOssConfig,
    SeedOssForCausalLM,
)


@dataclass(kw_only=True)
class SizesByLayer:
    """The common part of the configurations: heads, key/value heads and MLP neurons of every layer, first to last.

    num_attention_heads and num_key_value_heads are always 1 and have no meaning here, because transformers rejects
    numbers that do not divide the hidden size.
    """

    layer_heads: list[int]
    layer_kv_heads: list[int]
    layer_mlp: list[int]

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("per_layer_config", None)  # the lists above say the same
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """The configuration, with the sizes of the layers also as transformers' ``per_layer_config``."""
        names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        sizes = zip(self.layer_heads, self.layer_kv_heads, self.layer_mlp, strict=True)
        layers = {str(place): dict(zip(names, one, strict=True)) for place, one in enumerate(sizes)}
        return {**super().to_dict(), "per_layer_config": layers}  # type: ignore[misc]


class LayersBySize:
    """The common part of the models: each layer is a stock layer with its own sizes."""

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


class PrunedSeedOssConfig(SizesByLayer, SeedOssConfig):  # type: ignore[misc]
    """Seed-OSS's configuration with sizes by layer."""

    model_type = "pruned_seed_oss"


class PrunedLlamaForCausalLM(LayersBySize, LlamaForCausalLM):  # type: ignore[misc]
    """The causal language model. Use it like any Llama."""

    config_class = PrunedLlamaConfig


class PrunedMistralForCausalLM(LayersBySize, MistralForCausalLM):  # type: ignore[misc]
    """The causal language model. Use it like any Mistral."""

    config_class = PrunedMistralConfig


class PrunedQwen2ForCausalLM(LayersBySize, Qwen2ForCausalLM):  # type: ignore[misc]
    """The causal language model. Use it like any Qwen2."""

    config_class = PrunedQwen2Config


class PrunedQwen3ForCausalLM(LayersBySize, Qwen3ForCausalLM):  # type: ignore[misc]
    """The causal language model. Use it like any Qwen3."""

    config_class = PrunedQwen3Config


class PrunedSeedOssForCausalLM(LayersBySize, SeedOssForCausalLM):  # type: ignore[misc]
    """The causal language model. Use it like any Seed-OSS."""

    config_class = PrunedSeedOssConfig


# Every saved checkpoint refers to these classes in its configuration and contains a copy of this file.
for _config, _model in (
    (PrunedLlamaConfig, PrunedLlamaForCausalLM),
    (PrunedMistralConfig, PrunedMistralForCausalLM),
    (PrunedQwen2Config, PrunedQwen2ForCausalLM),
    (PrunedQwen3Config, PrunedQwen3ForCausalLM),
    (PrunedSeedOssConfig, PrunedSeedOssForCausalLM),
):
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForCausalLM")
