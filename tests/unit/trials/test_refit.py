"""Refitted projections against least squares on the activations themselves, and students with what they gain by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_gpt2
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from trials.families import FAMILIES, family_of
from trials.families.base import channels
from trials.importance import ImportanceScores, compute_importance
from trials.moments import Moments, MomentSums
from trials.prune import choose, prune
from trials.refit import fitted

TOKENS = torch.randint(320, (8, 32), generator=torch.Generator().manual_seed(5))


def make_teacher(model_type: str) -> PreTrainedModel:
    return make_gpt2() if model_type == "gpt2" else make_decoder(model_type)


def calibrated(teacher: PreTrainedModel, folder: Path) -> tuple[ImportanceScores, Moments]:
    sums = MomentSums()
    scores = compute_importance(teacher, family_of(teacher.config), TOKENS, moments=sums)
    sums.save(folder)
    return scores, Moments.load(folder)


def activations(seed: int, tokens: int, inputs: int) -> Tensor:
    """Correlated, and not of mean 0."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return (mixed + 3 * torch.randn(inputs, generator=generator)).double()


@given(st.integers(0, 99), st.integers(1, 9), st.booleans(), st.sampled_from([1e-6, 1e-3, 1.0]))
def test_the_fit_is_least_squares_on_the_activations(seed: int, count: int, biased: bool, ridge: float) -> None:
    inputs, generator = activations(seed, 50, 10), torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 10, generator=generator).double()
    bias = torch.randn(4, generator=generator).double() if biased else None
    kept = torch.randperm(10, generator=generator)[:count].sort().values
    mean, second = inputs.mean(dim=0), inputs.T @ inputs / len(inputs)

    new, new_bias = fitted(weight, bias, mean, second, kept, ridge)

    # What is missing from the slice, fitted from what stays, with the ridge as so many rows more.
    own, lost = inputs[:, kept], inputs @ weight.T - inputs[:, kept] @ weight[:, kept].T
    if biased:
        own, lost = own - own.mean(dim=0), lost - lost.mean(dim=0)
    penalty = ridge * own.square().mean(dim=0).mean() * len(inputs)
    rows = torch.cat([own, penalty.sqrt() * torch.eye(count)])
    gain = torch.linalg.lstsq(rows, torch.cat([lost, torch.zeros(count, 4)]), driver="gelsd").solution.T
    torch.testing.assert_close(new, weight[:, kept] + gain, rtol=1e-5, atol=1e-6)
    assert (new_bias is not None) == biased
    if biased:
        means = (inputs[:, kept] @ new.T + new_bias).mean(dim=0)
        torch.testing.assert_close(means, (inputs @ weight.T + bias).mean(dim=0))


@pytest.mark.parametrize("biased", [True, False])
def test_what_stays_whole_or_says_nothing_is_not_changed(biased: bool) -> None:
    inputs, weight = activations(0, 40, 6), torch.randn(3, 6).double()
    bias = torch.randn(3).double() if biased else None
    mean, second = inputs.mean(dim=0), inputs.T @ inputs / len(inputs)
    whole, _ = fitted(weight, bias, mean, second, torch.arange(6))
    assert torch.equal(whole, weight)
    silent, same = fitted(weight, bias, torch.zeros(6), torch.zeros(6, 6), torch.arange(4))
    assert torch.equal(silent, weight[:, :4])
    assert bias is None or torch.equal(same, bias)


@pytest.mark.parametrize("members", ["whole groups", "parts of groups"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_projection_comes_nearer_to_the_teachers(model_type: str, members: str, tmp_path: Path) -> None:
    teacher = make_teacher(model_type)
    family, shape = family_of(teacher.config), family_of(teacher.config).shape(teacher.config)
    scores, moments = calibrated(teacher, tmp_path)
    heads, kv_heads = (2 * shape.group, 2) if members == "whole groups" else (shape.heads // shape.group, None)
    if heads == shape.heads:
        pytest.skip("every head is a group of its own")
    smaller = Architecture.uniform(2, 40, heads, 60, kv_heads)
    kept = choose(scores, smaller, shape.group)
    sliced, refitted = prune(teacher, scores, smaller), prune(teacher, scores, smaller, moments)
    for place, layer in enumerate(kept.layers.tolist()):
        heads = channels(kept.heads[place], shape.head_dim)
        for projection, stays in ((family.attention_output, heads), (family.mlp_output, kept.mlp[place])):
            inputs, outputs = seen(teacher, projection(family.layers(teacher)[layer]))
            sliced_error, refitted_error = (
                (projection(family.layers(student)[place])(inputs[:, stays]) - outputs[:, kept.hidden]).square().sum()
                for student in (sliced, refitted)
            )
            assert refitted_error < 0.95 * sliced_error


def test_what_was_there_twice_is_not_missed(tmp_path: Path) -> None:
    """Of a layer whose neurons and heads come in equal pairs, half can go: the others take over their part."""
    teacher = make_gpt2()
    with torch.no_grad():
        for block in teacher.transformer.h:
            attention, mlp = block.attn.c_attn, block.mlp.c_fc
            mlp.weight[:, 48:], mlp.bias[48:] = mlp.weight[:, :48], mlp.bias[:48]
            for part in range(3):
                first, second = slice(48 * part, 48 * part + 24), slice(48 * part + 24, 48 * part + 48)
                attention.weight[:, second], attention.bias[second] = attention.weight[:, first], attention.bias[first]
    _, moments = calibrated(teacher, tmp_path)
    first = (np.repeat([[1, 0]], 3, axis=0).repeat(half, axis=1).astype(np.float32) for half in (2, 48))
    scores = ImportanceScores(np.ones(3, np.float32), np.ones(48, np.float32), *first)
    student = prune(teacher, scores, Architecture.uniform(3, 48, 2, 48), moments)
    tokens = TOKENS[:2]
    torch.testing.assert_close(student(tokens).logits, teacher(tokens).logits, rtol=0, atol=0.1)
    plain = prune(teacher, scores, Architecture.uniform(3, 48, 2, 48))
    assert (plain(tokens).logits - teacher(tokens).logits).abs().max() > 1


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_projection_that_lost_no_input_is_a_slice(model_type: str, tmp_path: Path) -> None:
    teacher = make_teacher(model_type)
    scores, moments = calibrated(teacher, tmp_path)
    full = family_of(teacher.config).shape(teacher.config).full
    thin = Architecture.uniform(2, 40, full.heads[0], full.mlp[0], full.kv_heads[0])
    sliced, refitted = prune(teacher, scores, thin).state_dict(), prune(teacher, scores, thin, moments).state_dict()
    assert all(torch.equal(weight, refitted[name]) for name, weight in sliced.items())


def seen(model: PreTrainedModel, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What ``module`` reads and gives on `TOKENS`, one row for each token."""
    rows = []
    handle = module.register_forward_hook(lambda _, inputs, output: rows.extend([inputs[0], output]))
    model(TOKENS)
    handle.remove()
    inputs, output = rows
    return inputs.flatten(0, 1), output.flatten(0, 1)
