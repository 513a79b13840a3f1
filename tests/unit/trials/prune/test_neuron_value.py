"""Neuron values against the loss of each layer and the stream after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_gpt2
from torch import Tensor
from transformers import PreTrainedModel

from trials.families.lookup import FAMILIES, family_of
from trials.prune.importance import load_importance
from trials.prune.neuron_value import neuron_values
from trials.storage.cache import Cache
from trials.teacher.streams import load_streams
from trials.teacher.teacher import load_teacher

TEXT = np.arange(192).reshape(6, 32) * 7 % 320


def make_teacher(model_type: str) -> PreTrainedModel:
    return make_gpt2() if model_type == "gpt2" else make_decoder(model_type)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_neurons_that_go_are_worth_the_share_of_the_stream_that_is_lost(
    model_type: str, tmp_path: Path, tiny_tokenizer: object
) -> None:
    make_teacher(model_type).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    teacher, cache = load_teacher(tmp_path / "teacher", "cpu"), Cache(tmp_path / "cache")
    scores, _ = load_importance(teacher, TEXT, cache)
    values = neuron_values(scores, load_streams(teacher, TEXT, cache))
    assert values.layers == tuple(scores.layers.tolist())
    behind: list[Tensor] = []
    family = family_of(teacher.model.config)
    for layer in family.layers(teacher.model):
        layer.register_forward_hook(lambda _, inputs, output: behind.append(output))
    with torch.no_grad():
        teacher.model(torch.from_numpy(TEXT))
    for row, lost, stream in zip(values.mlp, scores.mlp, behind, strict=True):
        size = 1 / float(stream.square().sum(dim=2).reciprocal().mean())
        for gone in (1, len(row) // 2, len(row)):
            assert sum(sorted(row)[:gone]) == pytest.approx(np.sort(lost)[gone - 1] / size, rel=2e-3)
            assert list(row) == sorted(row, reverse=True)
