"""Distillation: the training result, and the same batches for every trial."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt2
from distilling import CORPUS, GPT2, SETTINGS, TEACHER, Readings, Watched, after, same, student, uninterrupted, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.activations import GELUTanh, NewGELUActivation

from trials.distill import distill as distillation
from trials.distill.checkpoint import load_checkpoint
from trials.distill.distill import (
    Diverged,
    NonFiniteLoss,
    OutOfMemory,
    distill,
    learning_rate,
    make_optimizer,
    text_loss,
)
from trials.losses.kl import chunked_kl
from trials.losses.precision import training_precision
from trials.teacher.targets import Targets


def test_student_comes_nearer_to_the_teacher() -> None:
    _, readings, result = uninterrupted()
    assert [tokens for tokens, _ in readings] == [0, 192, 640]
    assert [(rung.tokens, rung.metrics) for rung in result.rungs] == readings
    assert "kl" not in readings[0][1]
    assert readings[2][1]["kl"] < 0.9 * readings[1][1]["kl"]
    assert readings[2][1]["seconds"] == result.seconds
    assert [metrics["seconds"] for _, metrics in readings] == sorted(metrics["seconds"] for _, metrics in readings)
    assert result.resumed_from == 0


def test_every_architecture_sees_the_same_windows_in_the_same_order(tmp_path: Path) -> None:
    one, other, third = Watched(TEACHER), Watched(TEACHER), Watched(TEACHER)
    distill(student(), one, CORPUS, SETTINGS, tmp_path / "one", Readings())
    distill(make_gpt2().requires_grad_(True), other, CORPUS, SETTINGS, tmp_path / "other", Readings())
    distill(student(), third, CORPUS, replace(SETTINGS, seed=1), tmp_path / "third", Readings())
    assert one.places == other.places != third.places
    assert sorted(place for batch in one.places for place in batch) == list(range(40))  # one epoch: every window once


def test_reported_kl_is_the_mean_over_the_steps_since_the_rung_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []

    def recorded(*arguments: Any) -> Tensor:
        loss = chunked_kl(*arguments)
        steps.append(float(loss.detach()))
        return loss

    monkeypatch.setattr("trials.teacher.targets.chunked_kl", recorded)
    _, first, second = distill(student(), Targets(TEACHER), CORPUS, SETTINGS, tmp_path, Readings()).rungs
    assert first.metrics["kl"] == pytest.approx(np.mean(steps[:3]))
    assert second.metrics["kl"] == pytest.approx(np.mean(steps[3:]))


def test_loss_of_the_text_is_that_of_transformers() -> None:
    model, tokens = student(), torch.from_numpy(CORPUS.train[:64].astype(np.int64)).reshape(4, 16)
    expected = model(tokens, labels=tokens).loss
    found = text_loss(GPT2.backbone(model, tokens), GPT2.output_weight(model), tokens)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    for one, wanted in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_what_is_learnt_of_the_text_alone_is_not_of_the_teacher(tmp_path: Path) -> None:
    """The reported KL is still the divergence from the teacher."""
    learnt, kl = {}, {}
    for share in (0.0, 0.5, 1.0):
        for seed in (0, 9):
            model, targets = student(), Targets(replace(TEACHER, model=make_gpt2(seed)))
            own = replace(SETTINGS, tokens=256, rungs=(64, 256), text_share=share)
            rungs = distill(model, targets, CORPUS, own, tmp_path / f"{share} {seed}", Readings()).rungs
            learnt[share, seed], kl[share, seed] = weights(model), rungs[1].metrics["kl"]
    assert same(learnt[1.0, 0], learnt[1.0, 9])
    assert not same(learnt[0.5, 0], learnt[0.5, 9])
    assert not same(learnt[0.5, 0], learnt[1.0, 0])
    for seed in (0, 9):  # the KL of the first step, before the weights change
        assert kl[0.5, seed] == kl[1.0, seed] == kl[0.0, seed]
    assert kl[1.0, 0] != kl[1.0, 9]


@pytest.mark.parametrize("micro_tokens", [16, 48])
def test_micro_batches_change_nothing_but_rounding(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    micro_tokens: int,
) -> None:
    whole = uninterrupted()[1]  # which is kept, so the weights did not change
    monkeypatch.setitem(distillation.MICRO_TOKENS, "cpu", micro_tokens)
    watched, readings = Watched(TEACHER), Readings()
    distill(student(), watched, CORPUS, SETTINGS, tmp_path, readings)
    assert {len(places) for places in watched.places} <= {micro_tokens // 16, 4 % (micro_tokens // 16)}
    rounding = 1e-4 if training_precision("cpu")[0] is torch.float32 else 2e-3
    for (_, one), (_, other) in zip(readings, whole, strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=rounding)
        assert one.get("kl") == (other.get("kl") and pytest.approx(other["kl"], rel=rounding))


def test_a_step_has_fused_activations_and_what_is_measured_has_not(tmp_path: Path) -> None:
    seen: list[tuple[type, type]] = []

    def kinds() -> tuple[type, type]:
        own, teacher = (GPT2.layers(one)[0].get_submodule("mlp.act") for one in (model, TEACHER.model))
        return type(own), type(teacher)

    model = student()
    distill(model, Watched(TEACHER, lambda _: seen.append(kinds())), CORPUS, SETTINGS, tmp_path, Readings())
    assert set(seen) == {(GELUTanh, GELUTanh)}
    assert kinds() == (NewGELUActivation, NewGELUActivation)
    states = torch.randn(1000)
    torch.testing.assert_close(GELUTanh()(states), NewGELUActivation()(states), rtol=1e-5, atol=1e-6)


SHORT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_micro_batches_are_halved_when_memory_does_not_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def full(windows: int) -> None:
        if windows > 1:
            raise error

    model, wanted = student(), student()
    distill(model, Watched(TEACHER, full), CORPUS, SETTINGS, tmp_path / "full", Readings())
    monkeypatch.setitem(distillation.MICRO_TOKENS, "cpu", 16)
    distill(wanted, Targets(TEACHER), CORPUS, SETTINGS, tmp_path / "wanted", Readings())
    assert same(weights(model), weights(wanted))


def test_memory_that_does_not_do_for_one_window_is_an_error(tmp_path: Path) -> None:
    watched = Watched(TEACHER, after(0, torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(OutOfMemory, match="a training step on one window of 16 tokens: CUDA out of memory"):
        distill(student(), watched, CORPUS, SETTINGS, tmp_path, Readings())


def test_other_errors_are_not_taken_for_too_little_memory(tmp_path: Path) -> None:
    watched = Watched(TEACHER, after(0, RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        distill(student(), watched, CORPUS, SETTINGS, tmp_path, Readings())
    assert [len(places) for places in watched.places] == []


class Spoiled(Targets):
    """Targets that are NaN from the fifth batch on."""

    batches = 0

    def hidden(self, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        self.batches += 1
        return super().hidden(places, tokens) * (math.nan if self.batches >= 5 else 1)


def test_loss_that_is_not_finite_ends_the_trial(tmp_path: Path) -> None:
    model, readings = student(), Readings()
    with pytest.raises(NonFiniteLoss, match="step 5: training KL nan"):
        distill(model, Spoiled(TEACHER), CORPUS, SETTINGS, tmp_path, readings)
    kept = load_checkpoint(tmp_path, model, make_optimizer(model, 1e-3), SETTINGS.identity)
    assert all(torch.isfinite(weight).all() for weight in model.parameters()), "a student that is no more was kept"
    assert [one.tokens for one in kept.rungs] == [0, 192]
    assert [tokens for tokens, _ in readings] in ([0], [0, 192])  # whether the checkpoint was on disk by then


def test_student_that_is_not_finite_is_never_reported(tmp_path: Path) -> None:
    model, readings = student(), Readings()
    next(model.parameters()).data[0] = math.inf
    with pytest.raises(NonFiniteLoss, match="validation loss"):
        distill(model, Targets(TEACHER), CORPUS, SETTINGS, tmp_path, readings)
    assert not readings


def test_loss_that_is_finite_and_far_worse_than_a_guess_ends_the_trial(tmp_path: Path) -> None:
    readings = Readings()
    with pytest.raises(Diverged, match=r"step \d+: validation loss \d+\.\d, \d+\.\d before retraining; a lower"):
        distill(student(), Targets(TEACHER), CORPUS, replace(SETTINGS, learning_rate=0.9), tmp_path, readings)
    assert [tokens for tokens, _ in readings] == [0]


def test_dropout_of_the_configuration_is_off(tmp_path: Path) -> None:
    plain = make_gpt2(1).requires_grad_(True)
    dropping = make_gpt2(1, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).requires_grad_(True).train()
    for number, model in enumerate((plain, dropping)):
        distill(model, Targets(TEACHER), CORPUS, SETTINGS, tmp_path / str(number), Readings())
    assert same(weights(plain), weights(dropping))


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(2, 400), peak=st.floats(1e-5, 0.1))
def test_learning_rate_rises_to_the_peak_and_falls_to_a_tenth(steps: int, peak: float) -> None:
    plan = replace(SETTINGS, tokens=64 * steps, rungs=(64 * steps,), learning_rate=peak)
    rates = [learning_rate(step, plan) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert min(rates) > 0
    assert all(earlier < later for earlier, later in pairwise(rates[: top + 1]))
    assert all(earlier >= later for earlier, later in pairwise(rates[top:]))
    assert steps < 4 or rates[-1] == pytest.approx(peak / 10)


def test_decay_pulls_at_matrices_only(tiny_gpt2: GPT2LMHeadModel) -> None:
    model = make_gpt2().requires_grad_(True)
    optimizer = make_optimizer(model, 0.5)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for (name, before), after_step in zip(tiny_gpt2.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(after_step, before * (0.95 if before.dim() > 1 else 1)), name
