"""The order of removed layers follows the losses of the remaining models."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_gpt2
from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from trials.families.lookup import FAMILIES, family_of
from trials.families.shapes import shape_of
from trials.losses.window_losses import window_losses
from trials.prune import layer_order
from trials.prune.importance import compute_importance
from trials.prune.layer_order import removal_losses
from trials.prune.prune import prune

TOKENS = torch.randint(320, (6, 32), generator=torch.Generator().manual_seed(5))


def make_teacher(model_type: str, seed: int = 0) -> PreTrainedModel:
    return make_gpt2(seed=seed) if model_type == "gpt2" else make_decoder(model_type)


def loss_of(model: PreTrainedModel, layers: set[int]) -> float:
    """The loss of ``model`` pruned to ``layers`` by `prune`."""
    family, scores = family_of(model.config), compute_importance(model, family_of(model.config), TOKENS)
    shape = shape_of(model.config)
    scores = replace(scores, layers=np.isin(np.arange(shape.layers), list(layers)).astype(np.float32))
    kept = Architecture.uniform(len(layers), shape.hidden, shape.heads, shape.mlp, shape.kv_heads)
    return float(window_losses(prune(model, scores, kept), family, TOKENS.numpy()).mean())


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss as `window_losses` measures it."""
    monkeypatch.setattr(layer_order, "autocast", lambda _: nullcontext())


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_layer_has_the_loss_of_what_is_left_without_it(model_type: str) -> None:
    model = make_teacher(model_type)
    losses = removal_losses(model, family_of(model.config), TOKENS)
    order, left, last = np.argsort(losses).tolist(), set(range(len(losses))), -np.inf
    for layer in order[:-1]:  # a model without layers cannot be built
        left.remove(layer)
        last = max(last, loss_of(model, left))
        assert losses[layer] == pytest.approx(last, rel=1e-5)
    assert all(one < other for one, other in pairwise(np.sort(losses)))


@pytest.mark.parametrize("seed", range(4))
def test_the_first_to_go_is_the_one_without_which_the_loss_is_lowest(seed: int) -> None:
    model = make_teacher("gpt2", seed)
    losses = removal_losses(model, family_of(model.config), TOKENS)
    whole = set(range(len(losses)))
    assert int(np.argmin(losses)) == min(whole, key=lambda one: loss_of(model, whole - {one}))


def test_a_layer_that_does_nothing_goes_first() -> None:
    model = make_gpt2()
    with torch.no_grad():
        for projection in (model.transformer.h[1].attn.c_proj, model.transformer.h[1].mlp.c_proj):
            projection.weight.zero_()
            projection.bias.zero_()
    losses = removal_losses(model, family_of(model.config), TOKENS)
    assert int(np.argmin(losses)) == 1
    assert losses[1] == pytest.approx(window_losses(model, family_of(model.config), TOKENS.numpy()).mean(), rel=1e-6)


def test_no_more_text_is_read_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_order, "TOKENS", 70)
    model = make_gpt2()
    found = removal_losses(model, family_of(model.config), TOKENS)
    assert np.array_equal(found, removal_losses(model, family_of(model.config), TOKENS[:2]))
    monkeypatch.setattr(layer_order, "TOKENS", 1)
    found = removal_losses(model, family_of(model.config), TOKENS)
    assert np.array_equal(found, removal_losses(model, family_of(model.config), TOKENS[:1]))


def test_the_model_is_left_as_it_was() -> None:
    model = make_gpt2()
    removal_losses(model, family_of(model.config), TOKENS)
    assert not any(module._forward_pre_hooks for module in model.modules())
