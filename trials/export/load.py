"""Loads an exported checkpoint to write it in another format."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from search_spaces.errors import InputError
from trials.families.modeling_pruned_gpt2 import PrunedGPT2LMHeadModel
from trials.families.modeling_pruned_gpt_neox import PrunedGPTNeoXForCausalLM
from trials.families.modeling_pruned_llama import (
    PrunedLlamaForCausalLM,
    PrunedMistralForCausalLM,
    PrunedQwen2ForCausalLM,
    PrunedQwen3ForCausalLM,
    PrunedSeedOssForCausalLM,
)
from trials.families.shapes import SHAPES
from trials.storage.durable import MANIFEST, damage
from trials.teacher.config_file import check_config, check_weights, read_object
from trials.teacher.inside import check_inside
from trials.teacher.source import weight_files
from trials.teacher.teacher import load_weights

CUSTOM: dict[str, type[PreTrainedModel]] = {
    one.config_class.model_type: one
    for one in (
        PrunedGPT2LMHeadModel,
        PrunedGPTNeoXForCausalLM,
        PrunedLlamaForCausalLM,
        PrunedMistralForCausalLM,
        PrunedQwen2ForCausalLM,
        PrunedQwen3ForCausalLM,
        PrunedSeedOssForCausalLM,
    )
}


def load_checkpoint(folder: Path) -> PreTrainedModel:
    """The model in ``folder``, an export or a checkpoint of one of the families, in float32 on the CPU in eval mode.

    No code in the folder runs: our own classes are those of this project. Raises InputError for a folder that holds no
    such model, damaged or missing weights, and quantized ones.
    """
    name = str(folder)
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise InputError(f"model {name}: not a checkpoint, which has a config.json and safetensors weights")
    if (folder / MANIFEST).is_file() and (problem := damage(folder)):
        raise InputError(f"model {name}: {problem}; export it again or copy it again")
    check_inside(folder, name)
    check_config(folder, name)
    check_weights(folder, name, pruned=True)
    kind = read_object(folder / "config.json", name).get("model_type")
    if kind in CUSTOM:
        return _load_custom(folder, CUSTOM[kind])
    if kind not in SHAPES:
        raise InputError(f"model type {kind!r}: cannot be exported; take a model of type {', '.join(SHAPES)}")
    return load_weights(folder, torch.float32).eval()


def _load_custom(folder: Path, kind: type[PreTrainedModel]) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    model, loading = kind.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if problems := {name: sorted(map(str, found)) for name, found in loading.items() if found}:
        raise InputError(f"model {folder}: weights do not match its config.json: {problems}; copy it again")
    return model.eval()
