"""Wanda-sp: the structured form of Wanda (arXiv 2306.11695) that the paper of FLAP compares with (arXiv 2312.11983)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from benchmarks.peers.inputs import LayerInputs
from search_spaces.architecture import Architecture
from trials.families.base import matrix_of
from trials.families.lookup import family_of
from trials.prune.importance import ImportanceScores
from trials.prune.prune import prune


@torch.no_grad()
def wanda_scores(teacher: PreTrainedModel, scores: ImportanceScores, inputs: Sequence[LayerInputs]) -> ImportanceScores:
    """``scores`` with those of Wanda-sp for the MLP neurons.

    Wanda scores the weight between neuron j and output i by |W_ij| * ||X_j||_2, with the norm over all calibration
    tokens. Wanda-sp removes whole neurons. The score of a neuron is the sum of the scores of its output weights:

        s_j = ||X_j||_2 * sum_i |W_ij|
    """
    family = family_of(teacher.config)
    sums = [matrix_of(family.mlp_output(layer)).abs().double().sum(dim=0) for layer in family.layers(teacher)]
    neurons = [one.neurons.norm * total for one, total in zip(inputs, sums, strict=True)]
    return replace(scores, mlp=torch.stack(neurons).float().cpu().numpy())


def wanda_sp(
    teacher: PreTrainedModel, scores: ImportanceScores, inputs: Sequence[LayerInputs], architecture: Architecture
) -> PreTrainedModel:
    """``teacher`` cut to ``architecture``, which has fewer MLP neurons, as many in every layer. Nothing is refitted."""
    return prune(teacher, wanda_scores(teacher, scores, inputs), architecture)
