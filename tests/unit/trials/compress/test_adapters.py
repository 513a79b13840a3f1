"""Adapters change nothing at first, train alone, stay sparse when pruned, and merge without a trace."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, make_decoder, make_gpt2
from distilling import CORPUS, SETTINGS, TEACHER, Cut, Readings, Watched, after, same, student, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from search_spaces.adapter_count import adapter_parameters
from search_spaces.architecture import Architecture
from search_spaces.compression import MATRICES, Adapters, Compression
from search_spaces.errors import InputError
from trials.compress.adapters import adapter_state, load_adapters, merged, prune_adapters, with_adapters
from trials.compress.matrices import layer_matrices
from trials.distill.distill import distill
from trials.families.lookup import FAMILIES, family_of
from trials.families.shapes import shape_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune
from trials.teacher.targets import Targets

RANK4 = Adapters(rank=4)
TOKENS = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


@cache
def teacher_of(model_type: str) -> PreTrainedModel:
    return make_gpt2() if model_type == "gpt2" else make_decoder(model_type)


def architecture_of(model_type: str) -> Architecture:
    """An architecture that only the family's custom class holds."""
    grouped = model_type not in ("gpt2", "gpt_neox")
    return Architecture(2, 40, (4, 2), (56, 96), (2, 1)) if grouped else Architecture(2, 40, (4, 2), (56, 96))


def custom(model_type: str) -> PreTrainedModel:
    teacher = teacher_of(model_type)
    scores = compute_importance(teacher, family_of(teacher.config), torch.arange(64).reshape(4, 16))
    return prune(teacher, scores, architecture_of(model_type))


def stock(model_type: str) -> PreTrainedModel:
    return make_gpt2() if model_type == "gpt2" else make_decoder(model_type)


def trained(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """``model`` after its adapters have moved: B is no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    load_adapters(model, {name: torch.randn(w.shape, generator=generator) for name, w in adapter_state(model).items()})
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


def trainable(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize("make", [custom, stock])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_adapters_of_every_family(model_type: str, make: object) -> None:
    """They change nothing at first; the count is that of peft; merged, the logits are those with adapters beside."""
    model = make(model_type)  # type: ignore[operator]
    before, names, shape = logits(model), set(dict(model.named_parameters())), shape_of(teacher_of(model_type).config)
    assert with_adapters(model, RANK4) is model
    assert torch.equal(logits(model), before)
    architecture = architecture_of(model_type) if make is custom else shape.full
    assert trainable(model) == adapter_parameters(shape, architecture, RANK4)
    changed = logits(trained(model))
    assert (changed - before).abs().max() > 0.1
    plain = merged(model)
    assert set(dict(plain.named_parameters())) == names
    assert torch.allclose(logits(plain), changed, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("part", MATRICES)
@pytest.mark.parametrize("model_type", ["gpt2", "qwen3", "gpt_neox"])
def test_adapters_beside_one_part_of_the_layers(model_type: str, part: str) -> None:
    model, adapters = custom(model_type), Adapters(rank=3, matrices=(part,))
    wanted = {one.name for one in layer_matrices(model, (part,))}
    with_adapters(model, adapters)
    shape = shape_of(teacher_of(model_type).config)
    assert trainable(model) == adapter_parameters(shape, architecture_of(model_type), adapters)
    assert {name.rpartition(".")[0] for name in adapter_state(model)} == wanted


def test_what_a_family_reads_stays_where_it_is() -> None:
    model, family = custom("llama"), FAMILIES["llama"]
    before = [family.attention_output(one).weight for one in family.layers(model)]
    states = family.backbone(model, TOKENS)
    with_adapters(model, RANK4)
    assert all(
        one is family.attention_output(layer).weight for one, layer in zip(before, family.layers(model), strict=True)
    )
    assert torch.equal(family.backbone(model, TOKENS), states)


def test_the_start_follows_from_the_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    first = adapter_state(with_adapters(custom("gpt2"), RANK4))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    again = adapter_state(with_adapters(custom("gpt2"), RANK4))
    other = adapter_state(with_adapters(custom("gpt2"), RANK4, seed=1))
    assert same(first, again)
    assert not same(first, other)


def zeros(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: one == 0 for name, one in adapter_state(model).items()}


@settings(max_examples=15)
@given(sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.95]), momentum=st.sampled_from([0.0, 0.9]))
def test_pruned_weights_stay_zero_whatever_an_optimizer_does(sparsity: float, momentum: float) -> None:
    model = trained(with_adapters(custom("gpt2"), RANK4))
    kept = adapter_state(model)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1, momentum=momentum)

    def step() -> None:
        optimizer.zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()

    step()  # the optimizer has a momentum of its own now, for all weights
    before = adapter_state(model)
    assert not same(kept, before)
    prune_adapters(model, sparsity)
    found = zeros(model)
    for name, one in before.items():
        assert found[name].sum() == round(sparsity * one.numel())
        if found[name].any():
            assert one[found[name]].abs().max() <= one[~found[name]].abs().min()
    step()
    step()
    assert same(zeros(model), found)
    assert not same(adapter_state(model), before)
    after_steps = logits(model)
    assert torch.allclose(logits(merged(model)), after_steps, atol=1e-3, rtol=1e-4)


def test_adapters_that_are_pruned_again_are_sparser() -> None:
    model = trained(with_adapters(custom("gpt2"), RANK4))
    prune_adapters(model, 0.5)
    first = zeros(model)
    prune_adapters(model, 0.8)
    assert all(bool((first[name] <= one).all()) for name, one in zeros(model).items())


def test_an_interrupted_distillation_of_pruned_adapters_ends_bit_equal(tmp_path: Path) -> None:
    def adapted() -> PreTrainedModel:
        model = trained(with_adapters(student(), RANK4))
        prune_adapters(model, 0.8)
        return model

    whole, cut, resumed = adapted(), adapted(), adapted()
    start = weights(whole)
    distill(whole, Targets(TEACHER), CORPUS, SETTINGS, tmp_path / "whole", Readings())
    with pytest.raises(Cut):
        distill(cut, Watched(TEACHER, after(5, Cut())), CORPUS, SETTINGS, tmp_path / "cut", Readings())
    result = distill(resumed, Targets(TEACHER), CORPUS, SETTINGS, tmp_path / "cut", Readings())
    assert result.resumed_from == 192
    assert same(weights(resumed), weights(whole))
    moved = {name for name, one in weights(whole).items() if not torch.equal(one, start[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_wrong_adapters_are_named() -> None:
    with pytest.raises(InputError, match=r"adapters\.rank 0: must be at least 1"):
        Compression.from_dict({"adapters": {"rank": 0}})
    with pytest.raises(InputError, match=r"adapters\.rank 0: must be at least 1"):
        with_adapters(custom("gpt2"), Adapters())
    with pytest.raises(ValueError, match="has adapters already"):
        with_adapters(with_adapters(custom("gpt2"), RANK4), RANK4)


def test_without_peft_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"peft is not installed; install llm-nas\[lora\]"):
        with_adapters(custom("gpt2"), RANK4)
