"""The order of removed heads follows the loss when the others are refitted."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_neuron_order import TOKENS, inputs_of, loss_with, make_teacher, problem

from trials.families.base import bias_of, matrix_of
from trials.families.lookup import FAMILIES, family_of
from trials.families.shapes import shape_of
from trials.prune import input_moments
from trials.prune.head_order import eliminated_blocks, head_losses
from trials.prune.neuron_order import eliminated

RIDGE = 0.1


@settings(max_examples=20, deadline=None)
@given(blocks=st.integers(1, 6), size=st.integers(1, 4), outputs=st.integers(1, 9), seed=st.integers(0, 99))
def test_each_time_the_head_goes_without_which_the_refitted_loss_is_least(
    blocks: int, size: int, outputs: int, seed: int
) -> None:
    second, weight = problem(blocks * size, outputs, seed)
    losses = eliminated_blocks(second, weight, size, RIDGE)
    left = list(range(blocks))

    def without(out: int) -> float:
        others = [one for one in left if one != out]
        return loss_with(second, weight, [place for one in others for place in range(one * size, (one + 1) * size)])

    for out in losses.argsort().tolist():
        each = {one: without(one) for one in left}
        assert each[out] == pytest.approx(min(each.values()), rel=1e-3)
        assert float(losses[out]) == pytest.approx(each[out], rel=1e-3)
        left.remove(out)


def test_heads_of_one_channel_are_neurons() -> None:
    second, weight = problem(16, 8, 2)
    torch.testing.assert_close(eliminated_blocks(second, weight, 1), eliminated(second, weight), rtol=1e-3, atol=0)


def test_a_head_that_says_nothing_goes_first() -> None:
    second, weight = problem(12, 5, 1)
    second[3:6], second[:, 3:6] = 0, 0
    losses = eliminated_blocks(second, weight, 3)
    assert int(losses.argmin()) == 1
    assert losses.isfinite().all()


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_layer_is_judged_by_what_its_projection_reads(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_moments, "autocast", lambda _: nullcontext())
    model = make_teacher(model_type)
    family, dim = family_of(model.config), shape_of(model.config).head_dim
    found = head_losses(model, family, TOKENS, dim)
    for layer, losses in zip(family.layers(model), found, strict=True):
        output = family.attention_output(layer)
        rows = inputs_of(output, model).double()
        rows = rows if bias_of(output) is None else rows - rows.mean(dim=0)
        expected = eliminated_blocks(rows.T @ rows / len(rows), matrix_of(output), dim)
        np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-3)
