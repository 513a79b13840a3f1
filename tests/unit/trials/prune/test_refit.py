"""Refitted projections against least squares on the activations, and the streams that they restore."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_gpt2
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from trials.families.base import Family
from trials.families.lookup import FAMILIES, family_of
from trials.families.shapes import shape_of
from trials.prune.importance import ImportanceScores, compute_importance
from trials.prune.prune import prune, student_from
from trials.prune.refit import fitted, shift_of
from trials.prune.rotate import rotated, rotation_to
from trials.storage.cache import Cache
from trials.teacher import second_moments as moments
from trials.teacher import streams as streams_file
from trials.teacher.second_moments import second_moments
from trials.teacher.streams import Streams, load_streams
from trials.teacher.teacher import Teacher

TOKENS = torch.randint(320, (24, 32), generator=torch.Generator().manual_seed(5))


def make_teacher(model_type: str) -> PreTrainedModel:
    return make_gpt2() if model_type == "gpt2" else make_decoder(model_type)


def as_teacher(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Teacher:
    return Teacher(Path("teacher"), model, tokenizer, shape_of(model.config), "fingerprint")


def streams_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Streams:
    return load_streams(as_teacher(model, tokenizer), TOKENS.numpy(), Cache(folder))


def scores_of(model: PreTrainedModel) -> ImportanceScores:
    return compute_importance(model, family_of(model.config), TOKENS)


@given(st.integers(0, 99), st.integers(1, 9), st.booleans(), st.sampled_from([1e-6, 1e-2, 1.0]))
def test_the_fit_is_least_squares_on_the_activations(seed: int, width: int, biased: bool, ridge: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, wanted = (torch.randn(50, size, generator=generator).double() for size in (width, 4))
    inputs = inputs @ torch.randn(width, width, generator=generator).double() + 3  # correlated, and not of mean 0
    wanted = wanted + inputs.sum(dim=1, keepdim=True) - 2
    weight = torch.randn(4, width, generator=generator)

    fresh, bias = fitted(inputs, wanted, weight, biased, ridge)

    own, target = (one - one.mean(dim=0) if biased else one for one in (inputs, wanted))
    penalty = ridge * own.square().mean(dim=0).mean() * len(inputs)
    rows = torch.cat([own, penalty.sqrt() * torch.eye(width)])  # the ridge as additional rows
    missing = torch.cat([target - own @ weight.double().T, torch.zeros(width, 4)])
    expected = weight + torch.linalg.lstsq(rows, missing, driver="gelsd").solution.T
    torch.testing.assert_close(fresh, expected, rtol=1e-5, atol=1e-6)
    assert (bias is not None) == biased
    if biased:
        torch.testing.assert_close((inputs @ fresh.T + bias).mean(dim=0), wanted.mean(dim=0))


@pytest.mark.parametrize(("mean", "deviation"), [(10.0, 0.001), (10.0, 0.0), (1000.0, 0.1), (-3e4, 1.0)])
@pytest.mark.parametrize("flat", [1, 20, 40])
def test_inputs_that_hardly_vary_about_a_large_mean_are_fitted_as_well(
    mean: float, deviation: float, flat: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = (torch.randn(2_000, size, generator=generator) for size in (40, 4))
    inputs[:, :flat] = mean + deviation * inputs[:, :flat]
    weight = torch.randn(4, 40, generator=generator)
    found, expected = (fitted(one, wanted.to(one), weight, biased=True) for one in (inputs, inputs.double()))
    residuals = [wanted - (inputs.double() @ one[0].T + one[1]) for one in (found, expected)]
    torch.testing.assert_close(residuals[0].square().mean(), residuals[1].square().mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-2, atol=1e-3)


def test_ordinary_inputs_are_summed_as_they_are() -> None:
    inputs = torch.randn(2_000, 40, generator=torch.Generator().manual_seed(0))
    assert shift_of(inputs + 20) is None
    shifted = shift_of(torch.cat([inputs, 100 + inputs, torch.full_like(inputs[:, :1], 0.1)], dim=1))
    assert not shifted[:40].any()
    assert (shifted[40:80] - 100).abs().max() < 0.3
    assert shifted[80] == torch.tensor(0.1)


def test_inputs_that_say_nothing_change_nothing() -> None:
    weight = torch.randn(2, 3)
    fresh, bias = fitted(torch.zeros(9, 3), torch.zeros(9, 2), weight, biased=True)
    assert torch.equal(fresh, weight.double())
    assert not bias.any()


@pytest.mark.parametrize("width", [1, 7, 8, 19])
def test_second_moments_are_products_of_all_columns(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "STRIP", 8)
    inputs = torch.randn(30, width).double()
    torch.testing.assert_close(second_moments(inputs), inputs.T @ inputs)


CUTS = {"depth": (2, 48, None, 96), "hidden": (3, 36, None, 96), "heads": (3, 48, 2, 96), "all": (2, 40, 2, 60)}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_stream_comes_back_to_the_teachers(
    model_type: str, cut: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    teacher = make_teacher(model_type)
    family, (depth, hidden, kv_heads, mlp) = family_of(teacher.config), CUTS[cut]
    shape = shape_of(teacher.config)
    kv_heads = kv_heads or shape.kv_heads
    smaller = Architecture.uniform(depth, hidden, kv_heads * shape.group, mlp, kv_heads)
    scores, streams = scores_of(teacher), streams_of(teacher, tiny_tokenizer, tmp_path)
    sliced, refitted = (prune(teacher, scores, smaller, one) for one in (None, streams))
    if hidden == shape.hidden:
        wanted, before = last_stream(teacher, family), sliced
    else:
        rotation = rotation_to(teacher, family, streams.directions, hidden)
        wanted = rotation.turned_last(last_stream(teacher, family))
        wide = prune(teacher, scores, replace(smaller, hidden=shape.hidden))
        before = student_from(teacher.config, smaller, rotated(wide, family, rotation))
    errors = [(last_stream(student, family) - wanted).square().sum() for student in (before, refitted)]
    assert errors[1] < 0.7 * errors[0]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in refitted.modules())
    after = refitted.state_dict()
    changed = {name for name, weight in before.state_dict().items() if not torch.equal(weight, after[name])}
    fitted_ones = [
        one(layer) for layer in family.layers(refitted) for one in (family.attention_output, family.mlp_output)
    ]
    names = {name for name, module in refitted.named_modules() if any(module is one for one in fitted_ones)}
    assert {name.rpartition(".")[0] for name in changed} == names


def last_stream(model: PreTrainedModel, family: Family) -> Tensor:
    """The input of the final norm on `TOKENS`, one row per token."""
    rows: list[Tensor] = []
    handle = family.norms(model)[-1].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    family.backbone(model, TOKENS)
    handle.remove()
    return rows[0].flatten(0, 1)


def test_what_was_there_twice_is_not_missed(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """If a layer's neurons and heads are equal pairs, half of them can be removed without loss."""
    teacher = make_gpt2()
    with torch.no_grad():
        for block in teacher.transformer.h:
            attention, mlp = block.attn.c_attn, block.mlp.c_fc
            mlp.weight[:, 48:], mlp.bias[48:] = mlp.weight[:, :48], mlp.bias[:48]
            for part in range(3):
                first, second = slice(48 * part, 48 * part + 24), slice(48 * part + 24, 48 * part + 48)
                attention.weight[:, second], attention.bias[second] = attention.weight[:, first], attention.bias[first]
    halves = (np.repeat([[1, 0]], 3, axis=0).repeat(half, axis=1).astype(np.float32) for half in (2, 48))
    scores = ImportanceScores(np.ones(3, np.float32), np.ones(48, np.float32), *halves)
    half, tokens = Architecture.uniform(3, 48, 2, 48), TOKENS[:2]
    sliced, refitted = (
        prune(teacher, scores, half, one)(tokens).logits - teacher(tokens).logits
        for one in (None, streams_of(teacher, tiny_tokenizer, tmp_path))
    )
    assert refitted.square().mean() < 0.05 * sliced.square().mean()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_was_not_cut_is_not_changed(
    model_type: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    teacher = make_teacher(model_type)
    full = shape_of(teacher.config).full
    student = prune(teacher, scores_of(teacher), full, streams_of(teacher, tiny_tokenizer, tmp_path))
    assert torch.equal(student(TOKENS).logits, teacher(TOKENS).logits)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_streams_are_what_layers_read_and_attention_adds(
    model_type: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_file, "BATCH_TOKENS", {"cpu": 96})  # 8 batches of 3 windows
    teacher = make_teacher(model_type)
    streams, family = streams_of(teacher, tiny_tokenizer, tmp_path), family_of(teacher.config)
    assert_near(streams.directions.T @ streams.directions, torch.eye(48))
    assert torch.equal(streams.shares, streams.shares.sort(descending=True).values)
    assert float(streams.shares.sum()) == pytest.approx(1)
    states = teacher(TOKENS, output_hidden_states=True).hidden_states  # the last one is after the final norm
    assert torch.equal(streams.windows, TOKENS)
    for layer, state in enumerate(states[:-1]):
        assert_near(streams.before(layer), state.flatten(0, 1))
    assert_near(streams.before(len(states) - 1), last_stream(teacher, family))
    added: list[Tensor] = []
    for layer in family.layers(teacher):
        family.attention_output(layer).register_forward_hook(lambda _, inputs, output: added.append(output))
    family.backbone(teacher, TOKENS)
    for layer, output in enumerate(added):
        assert_near(streams.after_attention(layer), (states[layer] + output).flatten(0, 1))


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Within the rounding of bfloat16, which some hardware uses."""
    assert (found - expected).square().mean() < 1e-3 * expected.square().mean()


def test_streams_come_from_the_cache_and_their_number_is_limited(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = as_teacher(make_gpt2(), tiny_tokenizer)
    first = load_streams(teacher, TOKENS.numpy(), Cache(tmp_path))
    monkeypatch.setattr(streams_file, "TOKENS", 100)
    fewer = load_streams(teacher, TOKENS.numpy(), Cache(tmp_path))
    assert torch.equal(fewer.windows, TOKENS[:3])
    np.testing.assert_array_equal(fewer.inputs, first.inputs[:, :96])
    assert load_streams(replace(teacher, fingerprint="other"), 1 + TOKENS.numpy() % 9, Cache(tmp_path))
    monkeypatch.setattr(streams_file, "_write", None)  # another computation would fail
    again = load_streams(teacher, TOKENS.numpy().astype(np.uint16), Cache(tmp_path))
    np.testing.assert_array_equal(again.attention, fewer.attention)
    monkeypatch.setattr(streams_file, "LIMIT_BYTES", 1)
    with pytest.raises(TypeError):
        load_streams(teacher, TOKENS.numpy(), Cache(tmp_path))  # one window, which is not cached yet
