"""GPT-2: the only file that knows its module names, for stock models and for our models with sizes by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.families.base import Kept, channels, cut_layer, inherited, positions_of, without_weights
from trials.families.modeling_pruned_gpt2 import PrunedGPT2Config, PrunedGPT2LMHeadModel
from trials.families.shapes import LayerSettings, shape_of

CUTS = {
    "ln_1": ("hidden", ""),
    "attn.c_attn": ("qkv", "hidden"),
    "attn.c_proj": ("hidden", "heads"),
    "ln_2": ("hidden", ""),
    "mlp.c_fc": ("mlp", "hidden"),
    "mlp.c_proj": ("hidden", "mlp"),
}


class GPT2:
    """`trials.families.Family` for models of type ``gpt2``."""

    def build(
        self, config: GPT2Config, architecture: Architecture, settings: LayerSettings | None = None
    ) -> PreTrainedModel:
        """An empty student on the meta device, stock or custom. It inherits the rest of the teacher's configuration."""
        shape = shape_of(config)
        shape.check(architecture)
        values = inherited(config, architecture.depth, settings) | {
            "n_layer": architecture.depth,
            "n_embd": architecture.hidden,
        }
        values |= {"n_head": max(architecture.heads), "n_inner": max(architecture.mlp)}
        values["n_ctx"] = values["n_positions"]  # an old name, which llama.cpp's converter reads
        return without_weights(lambda: self._student(shape, architecture, values))

    def _student(self, shape: ModelShape, architecture: Architecture, values: dict[str, Any]) -> PreTrainedModel:
        if shape.is_stock(architecture):
            return GPT2LMHeadModel(GPT2Config(**values))
        sizes = {"layer_heads": list(architecture.heads), "layer_mlp": list(architecture.mlp)}
        return PrunedGPT2LMHeadModel(PrunedGPT2Config(head_dim=shape.head_dim, **sizes, **values))

    def cut(self, model: GPT2LMHeadModel, kept: Kept) -> dict[str, Tensor]:
        """Slices of the teacher's weights by the student's parameter names."""
        body, shape = model.transformer, shape_of(model.config)
        state = {
            "transformer.wte.weight": body.wte.weight.index_select(1, kept.hidden),
            "transformer.wpe.weight": body.wpe.weight.index_select(1, kept.hidden),
            "transformer.ln_f.weight": body.ln_f.weight[kept.hidden],
            "transformer.ln_f.bias": body.ln_f.bias[kept.hidden],
        }
        for place, layer in enumerate(kept.layers.tolist()):
            heads = channels(kept.heads[place], shape.head_dim)
            parts = {"hidden": kept.hidden, "heads": heads, "mlp": kept.mlp[place]}
            # c_attn holds q of all heads, then k, then v.
            parts["qkv"] = torch.cat([heads + part * shape.heads * shape.head_dim for part in range(3)])
            for name, weight in cut_layer(body.h[layer], CUTS, parts, inputs_first=True):
                state[f"transformer.h.{place}.{name}"] = weight
        if not shape.tied:
            state["lm_head.weight"] = model.lm_head.weight.index_select(1, kept.hidden)
        return state

    def layers(self, model: GPT2LMHeadModel) -> Sequence[nn.Module]:
        """The blocks."""
        return list(model.transformer.h)

    def norms(self, model: GPT2LMHeadModel) -> Sequence[nn.Module]:
        """ln_1 and ln_2 of every block, then ln_f."""
        pairs = ((block.ln_1, block.ln_2) for block in model.transformer.h)
        return [*(norm for pair in pairs for norm in pair), model.transformer.ln_f]

    def readers(self, layer: nn.Module) -> Sequence[tuple[nn.Module, Sequence[nn.Module]]]:
        """``c_attn`` reads ln_1; ``c_fc`` reads ln_2."""
        pairs = (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc"))
        return [(layer.get_submodule(norm), [layer.get_submodule(reader)]) for norm, reader in pairs]

    def embeddings(self, model: GPT2LMHeadModel) -> Sequence[nn.Module]:
        """The token and position embeddings."""
        return [model.transformer.wte, model.transformer.wpe]

    def attention_output(self, layer: nn.Module) -> nn.Module:
        """``attn.c_proj``."""
        return layer.get_submodule("attn.c_proj")

    def mlp_output(self, layer: nn.Module) -> nn.Module:
        """``mlp.c_proj``."""
        return layer.get_submodule("mlp.c_proj")

    def backbone(self, model: GPT2LMHeadModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """States after ln_f."""
        states: Tensor = model.transformer(tokens, use_cache=False, **positions_of(mask)).last_hidden_state
        return states

    def output_weight(self, model: GPT2LMHeadModel) -> Tensor:
        """The weight of ``lm_head``, which is the token embedding if they are tied."""
        weight: Tensor = model.lm_head.weight
        return weight
