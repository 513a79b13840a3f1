"""GPT-NeoX, the family of the Pythia models: the only file that knows its module names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.families.base import Kept, channels, cut_layer, inherited, positions_of, without_weights
from trials.families.modeling_pruned_gpt_neox import PrunedGPTNeoXConfig, PrunedGPTNeoXForCausalLM
from trials.families.shapes import LayerSettings, shape_of

CUTS = {
    "input_layernorm": ("hidden", ""),
    "attention.query_key_value": ("qkv", "hidden"),
    "attention.dense": ("hidden", "heads"),
    "post_attention_layernorm": ("hidden", ""),
    "mlp.dense_h_to_4h": ("mlp", "hidden"),
    "mlp.dense_4h_to_h": ("hidden", "mlp"),
}


class GPTNeoX:
    """`trials.families.Family` for models of type ``gpt_neox``."""

    def build(
        self, config: GPTNeoXConfig, architecture: Architecture, settings: LayerSettings | None = None
    ) -> PreTrainedModel:
        """An empty student on the meta device, stock or custom. It inherits the rest of the teacher's configuration."""
        shape = shape_of(config)
        shape.check(architecture)
        values = inherited(config, architecture.depth, settings)
        values |= {"num_hidden_layers": architecture.depth, "hidden_size": architecture.hidden}
        values |= {"num_attention_heads": architecture.heads[0], "intermediate_size": architecture.mlp[0]}
        return without_weights(lambda: self._student(shape, architecture, values))

    def _student(self, shape: ModelShape, architecture: Architecture, values: dict[str, Any]) -> PreTrainedModel:
        if shape.is_stock(architecture):
            return GPTNeoXForCausalLM(GPTNeoXConfig(**values))
        sizes = {"layer_heads": list(architecture.heads), "layer_mlp": list(architecture.mlp)}
        plain = {**values, "num_attention_heads": 1}
        return PrunedGPTNeoXForCausalLM(PrunedGPTNeoXConfig(head_dim=shape.head_dim, **sizes, **plain))

    def cut(self, model: GPTNeoXForCausalLM, kept: Kept) -> dict[str, Tensor]:
        """Slices of the teacher's weights by the student's parameter names."""
        body, shape = model.gpt_neox, shape_of(model.config)
        state = {
            "gpt_neox.embed_in.weight": body.embed_in.weight.index_select(1, kept.hidden),
            "gpt_neox.final_layer_norm.weight": body.final_layer_norm.weight[kept.hidden],
            "gpt_neox.final_layer_norm.bias": body.final_layer_norm.bias[kept.hidden],
        }
        for place, layer in enumerate(kept.layers.tolist()):
            heads = kept.heads[place]
            parts = {"hidden": kept.hidden, "heads": channels(heads, shape.head_dim), "mlp": kept.mlp[place]}
            parts["qkv"] = channels(heads, 3 * shape.head_dim)  # q, k and v of one head are adjacent
            for name, weight in cut_layer(body.layers[layer], CUTS, parts):
                state[f"gpt_neox.layers.{place}.{name}"] = weight
        if not shape.tied:
            state["lm_head.weight"] = model.lm_head.weight.index_select(1, kept.hidden)
        return state

    def layers(self, model: GPTNeoXForCausalLM) -> Sequence[nn.Module]:
        """The decoder layers."""
        return list(model.gpt_neox.layers)

    def norms(self, model: GPTNeoXForCausalLM) -> Sequence[nn.Module]:
        """Both LayerNorms of every layer, then the final one."""
        pairs = ((layer.input_layernorm, layer.post_attention_layernorm) for layer in model.gpt_neox.layers)
        return [*(norm for pair in pairs for norm in pair), model.gpt_neox.final_layer_norm]

    def readers(self, layer: nn.Module) -> Sequence[tuple[nn.Module, Sequence[nn.Module]]]:
        """``query_key_value`` reads the first norm; ``dense_h_to_4h`` reads the second."""
        pairs = (
            ("input_layernorm", "attention.query_key_value"),
            ("post_attention_layernorm", "mlp.dense_h_to_4h"),
        )
        return [(layer.get_submodule(norm), [layer.get_submodule(reader)]) for norm, reader in pairs]

    def embeddings(self, model: GPTNeoXForCausalLM) -> Sequence[nn.Module]:
        """The token embedding."""
        return [model.gpt_neox.embed_in]

    def attention_output(self, layer: nn.Module) -> nn.Module:
        """``attention.dense``."""
        return layer.get_submodule("attention.dense")

    def mlp_output(self, layer: nn.Module) -> nn.Module:
        """``mlp.dense_4h_to_h``."""
        return layer.get_submodule("mlp.dense_4h_to_h")

    def backbone(self, model: GPTNeoXForCausalLM, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """States after the final LayerNorm."""
        states: Tensor = model.gpt_neox(tokens, use_cache=False, **positions_of(mask)).last_hidden_state
        return states

    def output_weight(self, model: GPTNeoXForCausalLM) -> Tensor:
        """The weight of ``lm_head``, which is the token embedding if they are tied."""
        weight: Tensor = model.lm_head.weight
        return weight
