"""Llama-style decoders (llama, mistral, qwen2, qwen3, seed_oss): the only file that knows their module names.

They differ in biases, in norms of queries and keys, and in the names in their configurations. One `LlamaStyle` for each
names its transformers classes. Everything else comes from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.families.base import Kept, channels, cut_layer, inherited, positions_of, without_weights
from trials.families.modeling_pruned_llama import (
    PrunedLlamaForCausalLM,
    PrunedMistralForCausalLM,
    PrunedQwen2ForCausalLM,
    PrunedQwen3ForCausalLM,
    PrunedSeedOssForCausalLM,
)
from trials.families.shapes import LayerSettings, shape_of

CUTS = {
    "input_layernorm": ("hidden", ""),
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("kv_heads", "hidden"),
    "self_attn.v_proj": ("kv_heads", "hidden"),
    "self_attn.q_norm": ("", ""),  # one head long, shared by all heads
    "self_attn.k_norm": ("", ""),
    "self_attn.o_proj": ("hidden", "heads"),
    "post_attention_layernorm": ("hidden", ""),
    "mlp.gate_proj": ("mlp", "hidden"),
    "mlp.up_proj": ("mlp", "hidden"),
    "mlp.down_proj": ("hidden", "mlp"),
}
OF_WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers")


@dataclass(frozen=True)
class LlamaStyle:
    """`trials.families.Family` for one model type. ``stock`` is transformers' class; ``custom`` has sizes by layer."""

    stock: type[PreTrainedModel]
    custom: type[PreTrainedModel]

    def build(
        self, config: PretrainedConfig, architecture: Architecture, settings: LayerSettings | None = None
    ) -> PreTrainedModel:
        """An empty student on the meta device, stock or custom. It inherits the rest of the teacher's configuration.

        Some shapes get another type, which has the same computation and the same weight names:

        - transformers rejects a ``llama`` whose hidden size is not a multiple of its heads. It becomes a ``mistral``
          without a sliding window.
        - llama.cpp and vLLM take the width of a ``qwen2``'s head from its hidden size. Where that is wrong, it becomes
          a ``seed_oss``, which names the width. One with a sliding window stays, because ``seed_oss`` has none.
        """
        shape = shape_of(config)
        shape.check(architecture)
        values = inherited(config, architecture.depth, settings)
        if "max_window_layers" in values:  # the first layers, which have no window; for programs without layer_types
            kinds = values.get("layer_types", [])
            windowed = [place for place, kind in enumerate(kinds) if kind == "sliding_attention"]
            values["max_window_layers"] = min(windowed, default=architecture.depth)
        values |= {"num_hidden_layers": architecture.depth, "hidden_size": architecture.hidden}
        values |= {"num_attention_heads": architecture.heads[0], "num_key_value_heads": architecture.kv_heads[0]}
        values |= {"head_dim": shape.head_dim, "intermediate_size": architecture.mlp[0]}
        return without_weights(lambda: self._student(config, shape, architecture, values))

    def _student(
        self, config: PretrainedConfig, shape: ModelShape, architecture: Architecture, values: dict[str, Any]
    ) -> PreTrainedModel:
        if not shape.is_stock(architecture):
            sizes = {"layer_heads": architecture.heads, "layer_kv_heads": architecture.kv_heads}
            by_layer = {name: list(each) for name, each in {**sizes, "layer_mlp": architecture.mlp}.items()}
            plain = {**values, "num_attention_heads": 1, "num_key_value_heads": 1}
            return self.custom(self.custom.config_class(**by_layer, **plain))
        if config.model_type == "llama" and architecture.hidden % architecture.heads[0]:
            unused = ("attention_bias", "mlp_bias", "pretraining_tp")
            plain = {name: value for name, value in values.items() if name not in unused}
            return MistralForCausalLM(MistralConfig(**{**plain, "sliding_window": None}))
        square = shape.head_dim * architecture.heads[0] == architecture.hidden
        if config.model_type == "qwen2" and not square and not has_window(values):
            return SeedOssForCausalLM(SeedOssConfig(**_of_seed_oss(values)))
        return self.stock(self.stock.config_class(**values))

    def cut(self, model: PreTrainedModel, kept: Kept) -> dict[str, Tensor]:
        """Slices of the teacher's weights by the student's parameter names."""
        body, shape = model.model, shape_of(model.config)
        state = {
            "model.embed_tokens.weight": body.embed_tokens.weight.index_select(1, kept.hidden),
            "model.norm.weight": body.norm.weight[kept.hidden],
        }
        for place, layer in enumerate(kept.layers.tolist()):
            parts = {
                "hidden": kept.hidden,
                "heads": channels(kept.heads[place], shape.head_dim),
                "kv_heads": channels(kept.kv_heads[place], shape.head_dim),
                "mlp": kept.mlp[place],
            }
            for name, weight in cut_layer(body.layers[layer], CUTS, parts):
                state[f"model.layers.{place}.{name}"] = weight
        if not shape.tied:
            state["lm_head.weight"] = model.lm_head.weight.index_select(1, kept.hidden)
        return state

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers."""
        return list(model.model.layers)

    def norms(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Both RMSNorms of every layer, then the final one."""
        pairs = ((layer.input_layernorm, layer.post_attention_layernorm) for layer in model.model.layers)
        return [*(norm for pair in pairs for norm in pair), model.model.norm]

    def readers(self, layer: nn.Module) -> Sequence[tuple[nn.Module, Sequence[nn.Module]]]:
        """Queries, keys and values read the first norm; gate and up read the second."""
        attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        pairs = (("input_layernorm", attention), ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")))
        return [(layer.get_submodule(norm), [layer.get_submodule(one) for one in readers]) for norm, readers in pairs]

    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The token embedding."""
        return [model.model.embed_tokens]

    def attention_output(self, layer: nn.Module) -> nn.Module:
        """``self_attn.o_proj``."""
        return layer.get_submodule("self_attn.o_proj")

    def mlp_output(self, layer: nn.Module) -> nn.Module:
        """``mlp.down_proj``."""
        return layer.get_submodule("mlp.down_proj")

    def backbone(self, model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """States after the final norm."""
        states: Tensor = model.model(tokens, use_cache=False, **positions_of(mask)).last_hidden_state
        return states

    def output_weight(self, model: PreTrainedModel) -> Tensor:
        """The weight of ``lm_head``, which is the token embedding if they are tied."""
        weight: Tensor = model.lm_head.weight
        return weight


def has_window(values: Mapping[str, Any]) -> bool:
    """Whether a layer of a model with these values in its configuration attends to its last tokens only."""
    return "sliding_attention" in (values.get("layer_types") or ())


def _of_seed_oss(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a ``seed_oss`` that computes what a ``qwen2`` with ``values`` does.

    Its own defaults have dropout, and token ids of another vocabulary.
    """
    plain = {name: value for name, value in values.items() if name not in OF_WINDOWS}
    biases = {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False}
    ids = {name: values.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    dropout = values.get("attention_dropout", 0.0)
    return {**plain, **biases, **ids, "attention_dropout": dropout, "residual_dropout": 0.0}


LLAMA = LlamaStyle(LlamaForCausalLM, PrunedLlamaForCausalLM)
MISTRAL = LlamaStyle(MistralForCausalLM, PrunedMistralForCausalLM)
QWEN2 = LlamaStyle(Qwen2ForCausalLM, PrunedQwen2ForCausalLM)
QWEN3 = LlamaStyle(Qwen3ForCausalLM, PrunedQwen3ForCausalLM)
SEED_OSS = LlamaStyle(SeedOssForCausalLM, PrunedSeedOssForCausalLM)
