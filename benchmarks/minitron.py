"""Minitron's scores where they are not those of a search: for the recipe that students are compared with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from trials.families import Family
from trials.importance import ImportanceScores, compute_importance

BATCH = 4  # windows in a pass


def minitron_scores(model: PreTrainedModel, family: Family, windows: Tensor) -> ImportanceScores:
    """Minitron's of layers, channels, heads and neurons (arXiv 2407.14679, section 2.2) on ``windows`` (n, T)."""
    return replace(compute_importance(model, family, windows), mlp=neuron_scores(model, family, windows))


@torch.inference_mode()
def neuron_scores(model: PreTrainedModel, family: Family, windows: Tensor) -> NDArray[np.float32]:
    """L2 over ``windows`` (n, T) of the mean over tokens of the activation's magnitude (arXiv 2407.14679, section 2.2).

    (L, M), higher matters more.
    """
    found: dict[int, list[Tensor]] = {}

    def add(layer: int, _: object, inputs: tuple[Tensor, ...]) -> None:
        found.setdefault(layer, []).append(inputs[0].float().abs().mean(dim=1))

    layers = family.layers(model)
    handles = [
        family.mlp_output(layer).register_forward_pre_hook(partial(add, number)) for number, layer in enumerate(layers)
    ]
    for start in range(0, len(windows), BATCH):
        family.backbone(model, windows[start : start + BATCH].to(model.device))
    for handle in handles:
        handle.remove()
    return torch.stack([torch.cat(found[number]).norm(dim=0) for number in range(len(layers))]).cpu().numpy()
