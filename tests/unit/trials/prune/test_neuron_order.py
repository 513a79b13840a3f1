"""The order of removed neurons follows the loss when the others are refitted."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from trials.families.base import bias_of, matrix_of
from trials.families.lookup import FAMILIES, family_of
from trials.prune import input_moments
from trials.prune.neuron_order import eliminated, elimination_losses
from trials.teacher.second_moments import second_moments

TOKENS = torch.randint(320, (6, 32), generator=torch.Generator().manual_seed(5))
RIDGE = 0.1


def make_teacher(model_type: str) -> PreTrainedModel:
    return make_gpt2() if model_type == "gpt2" else make_decoder(model_type)


def problem(count: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Second moments (n, n) of correlated inputs, and a projection (m, n)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(200, count, generator=generator) @ torch.randn(count, count, generator=generator)
    return mixed.T @ mixed / len(mixed), torch.randn(outputs, count, generator=generator)


def inputs_of(output: nn.Module, model: PreTrainedModel) -> Tensor:
    """The inputs (N, n) of the projection ``output`` for all tokens."""
    seen: list[Tensor] = []
    handle = output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        family_of(model.config).backbone(model, TOKENS)
    handle.remove()
    return seen[0]


def loss_with(second: Tensor, weight: Tensor, left: list[int]) -> float:
    """The minimum of the objective of `eliminated` with only the inputs ``left``, solved in float64."""
    damped, weight = second.double(), weight.double()
    damped = damped + RIDGE * damped.diagonal().diag()
    fitted = torch.zeros_like(weight)
    if left:
        fitted[:, left] = torch.linalg.solve(damped[left][:, left], damped[left] @ weight.T).T
    missing = weight - fitted
    return float((missing @ damped * missing).sum())


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 24), outputs=st.integers(1, 9), seed=st.integers(0, 99))
def test_each_time_the_one_goes_without_which_the_refitted_loss_is_least(count: int, outputs: int, seed: int) -> None:
    second, weight = problem(count, outputs, seed)
    losses = eliminated(second, weight, RIDGE)
    left = list(range(count))
    for out in losses.argsort().tolist():
        without = {one: loss_with(second, weight, [other for other in left if other != one]) for one in left}
        assert without[out] == pytest.approx(min(without.values()), rel=1e-3)
        assert float(losses[out]) == pytest.approx(without[out], rel=1e-3)
        left.remove(out)


def test_of_two_neurons_that_say_the_same_one_goes_early_and_the_other_late() -> None:
    second, weight = problem(16, 8, 0)
    second[3], second[:, 3] = second[11].clone(), second[:, 11].clone()
    second[3, 3] = second[11, 3] = second[11, 11]
    weight[:, 3] = weight[:, 11] = 9.0
    order = eliminated(second, weight, 1e-6).argsort().tolist()
    first, last = sorted((order.index(3), order.index(11)))
    assert first == 0
    assert last > 12


def test_one_that_does_nothing_goes_first_and_losses_increase() -> None:
    second, weight = problem(12, 5, 1)
    weight[:, 7] = 0
    second[7], second[:, 7] = 0, 0
    losses = eliminated(second, weight)
    assert int(losses.argmin()) == 7
    assert all(one < other for one, other in pairwise(losses.sort().values.tolist()))
    assert all(one < other for one, other in pairwise(eliminated(second * 0, weight).sort().values.tolist()))


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("at_once", [1, 2**30])
def test_a_layer_is_judged_by_what_its_projection_reads(
    model_type: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments are about the mean if there is a bias, as in `trials.prune.refit`, for any number of layers per pass."""
    monkeypatch.setattr(input_moments, "autocast", lambda _: nullcontext())
    monkeypatch.setattr(input_moments, "MOMENT_BYTES", at_once)
    model = make_teacher(model_type)
    family = family_of(model.config)
    found = elimination_losses(model, family, TOKENS)
    for layer, losses in zip(family.layers(model), found, strict=True):
        output = family.mlp_output(layer)
        rows = inputs_of(output, model).double()
        rows = rows if bias_of(output) is None else rows - rows.mean(dim=0)
        expected = eliminated(rows.T @ rows / len(rows), matrix_of(output))
        np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-3)


FLAT = (3, 40, 41)  # neurons that hardly vary
CONSTANT = 7


def with_flat_neurons(model_type: str, deviation: float) -> PreTrainedModel:
    """A teacher with biases in its MLPs. In each layer four neurons read about 10 before the activation.

    Three of them vary ``deviation`` times as much as they did, the fourth not at all.
    """
    model = make_decoder("llama", mlp_bias=True) if model_type == "llama" else make_teacher(model_type)
    family, flat = family_of(model.config), [*FLAT, CONSTANT]
    with torch.no_grad():
        for layer in family.layers(model):
            _, (_, readers) = family.readers(layer)
            for reader in readers:
                matrix, bias = matrix_of(reader), bias_of(reader)
                matrix[flat] *= deviation
                matrix[CONSTANT] = 0
                bias[flat] = 10.0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("deviation", [0.1, 0.01, 1e-4, 0])
@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama"])
def test_what_a_bias_replaces_goes_first_and_disturbs_no_other(
    model_type: str, deviation: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neuron that hardly varies costs what its small variance costs, however far from 0 its mean is."""
    monkeypatch.setattr(input_moments, "autocast", lambda _: torch.autocast("cpu", dtype, dtype is torch.bfloat16))
    monkeypatch.setattr(input_moments, "BATCH_TOKENS", 64)  # three batches
    model = with_flat_neurons(model_type, deviation)
    family = family_of(model.config)
    found = elimination_losses(model, family, TOKENS)
    for layer, losses in zip(family.layers(model), found, strict=True):
        output = family.mlp_output(layer)
        with input_moments.autocast("cpu"):
            rows = inputs_of(output, model).double()
        rows = rows - rows.mean(dim=0)
        expected = eliminated(rows.T @ rows / len(rows), matrix_of(output))
        # Sorted, because neurons that cost nearly the same may change places.
        np.testing.assert_allclose(np.sort(losses), expected.sort().values.numpy(), rtol=5e-3, atol=1e-9)
        assert losses[CONSTANT] < 1e-30 < np.sort(losses)[4]


def test_ordinary_neurons_are_judged_by_plain_sums() -> None:
    """To the last bit, so that a cached score stays what it is."""
    model = make_gpt2()
    family = family_of(model.config)
    with input_moments.autocast("cpu"):
        inputs = [inputs_of(family.mlp_output(layer), model).float() for layer in family.layers(model)]
    for layer, rows, losses in zip(
        family.layers(model), inputs, elimination_losses(model, family, TOKENS), strict=True
    ):
        mean, second = rows.sum(dim=0) / len(rows), second_moments(rows) / len(rows)
        expected = eliminated(second - torch.outer(mean, mean), matrix_of(family.mlp_output(layer)))
        assert np.array_equal(losses, expected.numpy())


def test_a_covariance_that_rounding_left_without_a_factor_gives_an_order() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(500, 40, generator=generator)
    rows[:, 5:20] = 10 + 0.001 * rows[:, 5:20]
    mean = rows.mean(dim=0)
    rounded = second_moments(rows) / len(rows) - torch.outer(mean, mean)
    assert torch.linalg.eigvalsh(rounded.double()).min() < 0
    losses = eliminated(rounded, torch.randn(8, 40, generator=generator))
    assert losses.isfinite().all()
    assert set(losses.argsort()[:15].tolist()) == set(range(5, 20))


def test_no_more_text_is_read_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_gpt2()
    family = family_of(model.config)
    monkeypatch.setattr(input_moments, "TOKENS", 70)
    assert np.array_equal(elimination_losses(model, family, TOKENS), elimination_losses(model, family, TOKENS[:2]))
    monkeypatch.setattr(input_moments, "TOKENS", 1)
    assert np.array_equal(elimination_losses(model, family, TOKENS), elimination_losses(model, family, TOKENS[:1]))


def test_the_model_is_left_as_it_was() -> None:
    model = make_gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    elimination_losses(model, family_of(model.config), TOKENS)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
