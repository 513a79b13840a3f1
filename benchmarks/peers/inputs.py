"""Statistics of what a teacher's output projections read on calibration text, which Wanda-sp and FLAP score with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trials.families.base import Family

BATCH = 4  # windows in one forward pass; bounds memory


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of one projection over all tokens: mean, sample variance and L2 norm of each, (n,), float64."""

    mean: Tensor
    variance: Tensor
    norm: Tensor


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """The inputs of a layer's output projections: the channels of its heads, and its MLP neurons."""

    heads: Inputs
    neurons: Inputs


class _Sums:
    """Sums of the inputs of one projection and of their squares."""

    def __init__(self) -> None:
        self.tokens, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the inputs (B, T, n) of one call."""
        rows = inputs[0].flatten(0, 1).double()
        self.tokens += len(rows)
        self.first, self.second = self.first.to(rows) + rows.sum(dim=0), self.second.to(rows) + rows.square().sum(dim=0)

    def inputs(self) -> Inputs:
        """The statistics of all calls."""
        mean = self.first / self.tokens
        variance = (self.second - self.tokens * mean.square()).clamp(min=0) / max(1, self.tokens - 1)
        return Inputs(mean, variance, self.second.sqrt())


@torch.no_grad()
def inputs_of(model: PreTrainedModel, family: Family, windows: Tensor) -> list[LayerInputs]:
    """The statistics for every layer of ``model`` on ``windows`` (n, T) of token ids."""
    outputs: tuple[Callable[[nn.Module], nn.Module], ...] = (family.attention_output, family.mlp_output)
    sums = [[_Sums() for _ in outputs] for _ in family.layers(model)]
    handles = [
        output(layer).register_forward_pre_hook(one.add)
        for layer, pair in zip(family.layers(model), sums, strict=True)
        for output, one in zip(outputs, pair, strict=True)
    ]
    try:
        for part in torch.split(windows, BATCH):
            family.backbone(model, part.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return [LayerInputs(heads.inputs(), neurons.inputs()) for heads, neurons in sums]
