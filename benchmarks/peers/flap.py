"""FLAP (arXiv 2312.11983): neurons and heads whose inputs hardly vary go, and biases replace their means."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.peers.inputs import Inputs, LayerInputs
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.families.base import bias_of, channels, matrix_of
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.prune.importance import ImportanceScores
from trials.prune.prune import choose, prune


@torch.no_grad()
def flap_scores(teacher: PreTrainedModel, scores: ImportanceScores, inputs: Sequence[LayerInputs]) -> ImportanceScores:
    """``scores`` with those of FLAP for heads and MLP neurons.

    The fluctuation metric of input j of an output projection W is its sample variance times a squared norm:

        S_j = 1/(N-1) sum_n (X_jn - mean X_j)^2 * ||W_:j||_2^2

    Modules have metrics of different sizes. So FLAP standardises them in every layer and module to mean 0 and standard
    deviation 1. The score of a head is the mean over its channels. Heads that share a key/value head go together. They
    all have the mean over the group.
    """
    family, shape = family_of(teacher.config), shape_of(teacher.config)
    heads, neurons = [], []
    for layer, one in zip(family.layers(teacher), inputs, strict=True):
        each = _standardised(fluctuation(family.attention_output(layer), one.heads))
        heads.append(each.reshape(shape.kv_heads, -1).mean(dim=1).repeat_interleave(shape.group))
        neurons.append(_standardised(fluctuation(family.mlp_output(layer), one.neurons)))
    found = (torch.stack(one).float().cpu().numpy() for one in (heads, neurons))
    return replace(scores, **dict(zip(("heads", "mlp"), found, strict=True)))


def fluctuation(projection: nn.Module, inputs: Inputs) -> Tensor:
    """The fluctuation metric (n,) of each input of ``projection``; see `flap_scores`."""
    return inputs.variance * matrix_of(projection).double().square().sum(dim=0)


def _standardised(values: Tensor) -> Tensor:
    spread = values.std()
    return (values - values.mean()) / torch.where(spread > 0, spread, 1)


def adaptive(shape: ModelShape, scores: ImportanceScores, target: int) -> Architecture:
    """The architecture of FLAP's default spread over layers and modules (AL-AM).

    All groups of heads and all neurons of the network are ranked by their ``scores``. The best stay, as many as
    ``target`` non-embedding parameters allow. The best group and the best neuron of each layer always stay, because a
    layer of ours has an attention and an MLP.
    """
    groups = scores.heads[:, :: shape.group]
    units = [
        (-np.inf if place == each[layer].argmax() else -float(value), kind, layer)
        for kind, each in enumerate((groups, scores.mlp))
        for (layer, place), value in np.ndenumerate(each)
    ]
    order = [(kind, layer) for _, kind, layer in sorted(units)]

    def spread(count: int) -> Architecture:
        kept = Counter(order[:count])
        groups, neurons = (tuple(kept[kind, layer] for layer in range(shape.layers)) for kind in (0, 1))
        return Architecture(
            shape.layers, shape.hidden, tuple(shape.group * one for one in groups), neurons, kv_heads=groups
        )

    counts = range(len(order) + 1)
    least = 2 * shape.layers
    above = bisect_right(counts, target, lo=least, key=lambda count: flap_parameters(shape, spread(count)))
    return spread(max(least, above - 1))


def flap_parameters(shape: ModelShape, architecture: Architecture) -> int:
    """Non-embedding parameters of a teacher cut to ``architecture``, with a bias behind every projection that was cut.

    Biases that the teacher already has are counted once.
    """
    attention = sum(heads < shape.heads for heads in architecture.heads) * (not shape.output_bias)
    mlp = sum(neurons < shape.mlp for neurons in architecture.mlp) * (not shape.mlp_bias)
    return shape.non_embedding_parameters(architecture) + (attention + mlp) * shape.hidden


@torch.no_grad()
def flap(
    teacher: PreTrainedModel, scores: ImportanceScores, inputs: Sequence[LayerInputs], architecture: Architecture
) -> PreTrainedModel:
    """``teacher`` cut to ``architecture``, which has all layers and the whole width, with FLAP's bias compensation.

    ``scores`` are those of `flap_scores`. The removed inputs of an output projection W are replaced by their means:

        bias = W_:removed mean X_removed
    """
    family, shape = family_of(teacher.config), shape_of(teacher.config)
    student = prune(teacher, scores, architecture)
    kept = choose(scores, architecture, shape.group, teacher.device)
    layers = zip(family.layers(teacher), family.layers(student), inputs, kept.heads, kept.mlp, strict=True)
    for whole, layer, one, heads, neurons in layers:
        places = channels(heads, shape.head_dim)
        _compensate(family.attention_output(whole), family.attention_output(layer), one.heads.mean, places)
        _compensate(family.mlp_output(whole), family.mlp_output(layer), one.neurons.mean, neurons)
    return student


def _compensate(whole: nn.Module, projection: nn.Module, mean: Tensor, kept: Tensor) -> None:
    """Give ``projection``, which reads the inputs ``kept`` of ``whole``, a bias for the other inputs' ``mean``."""
    if len(kept) == len(mean):
        return
    gone = mean.clone()
    gone[kept] = 0
    missing, present = (matrix_of(whole).double() @ gone).to(kept.device), bias_of(projection)
    total = missing if present is None else present + missing
    projection.register_parameter("bias", nn.Parameter(total.to(matrix_of(projection).dtype)))
