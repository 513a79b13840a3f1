"""The losses of many subsets of layers are those of each slice alone, and common beginnings run once."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from conftest import make_decoder, make_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.losses.window_losses import window_losses
from trials.prune.importance import ImportanceScores
from trials.prune.prune import prune
from trials.prune.subset_losses import subset_losses

LAYERS = 5
WINDOWS = np.random.default_rng(3).integers(320, size=(5, 24))
TEACHERS = {
    "gpt2": make_gpt2(n_layer=LAYERS),
    "llama": make_decoder("llama", num_hidden_layers=LAYERS),
    "gpt_neox": make_decoder("gpt_neox", num_hidden_layers=LAYERS),
}
ALL = [one for depth in range(1, LAYERS + 1) for one in combinations(range(LAYERS), depth)]


def slice_of(model: PreTrainedModel, layers: tuple[int, ...]) -> PreTrainedModel:
    shape, depth = shape_of(model.config), len(layers)
    sizes = (shape.heads,) * depth, (shape.mlp,) * depth, (shape.kv_heads,) * depth
    named = layers if depth < LAYERS else ()
    scores = ImportanceScores(
        np.zeros(LAYERS, np.float32),
        np.zeros(shape.hidden, np.float32),
        np.zeros((LAYERS, shape.heads), np.float32),
        np.zeros((LAYERS, shape.mlp), np.float32),
    )
    return prune(model, scores, Architecture(depth, shape.hidden, *sizes, named))


@pytest.mark.parametrize("name", TEACHERS)
@settings(max_examples=8)
@given(st.lists(st.sampled_from(ALL), min_size=1, max_size=8, unique=True), st.integers(1, 6))
def test_losses_are_those_of_each_slice_alone(name: str, subsets: list[tuple[int, ...]], batch: int) -> None:
    model = TEACHERS[name]
    family = family_of(model.config)
    found = subset_losses(model, family, WINDOWS, subsets, batch)
    assert set(found) == set(subsets)
    for layers in subsets:
        alone = window_losses(slice_of(model, layers), family, WINDOWS, batch)
        assert np.abs(found[layers] - alone).max() < 1e-5
    assert len({one.tobytes() for one in found.values()}) == len(subsets)  # no two subsets are the same model


def test_a_layer_runs_once_for_each_common_beginning() -> None:
    model, counted = TEACHERS["gpt2"], Counter[int]()
    family = family_of(model.config)
    layers = family.layers(model)
    handles = [one.register_forward_hook(lambda layer, *_: counted.update([layers.index(layer)])) for one in layers]
    subset_losses(model, family, WINDOWS, ALL)
    for handle in handles:
        handle.remove()
    trace = 1  # the model runs once to give the arguments of its layers
    assert [counted[layer] - trace for layer in range(LAYERS)] == [2**layer for layer in range(LAYERS)]
