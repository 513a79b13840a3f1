"""Training compressed students: what is measured is what is saved, and an interruption does not change it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distilling import CORPUS, GPT2, SETTINGS, TEACHER, Cut, Readings, Watched, after, same, student, weights
from transformers import PreTrainedModel

from search_spaces.compression import Adapters, Compression, Quantization, Sparsity
from search_spaces.errors import InputError
from trials.compress.compress import Compressor, compressor, rate_of, round_weights
from trials.compress.matrices import layer_matrices
from trials.compress.sparsify import measured_sparsity
from trials.distill.distill import DistillResult, distill
from trials.losses.window_losses import window_losses
from trials.text.corpus import windows

EVERY = [
    Compression(quantization=Quantization("nf4")),
    Compression(Sparsity(0.5, end=0.8)),
    Compression(Sparsity(0.5, method="wanda"), Quantization("int8")),
    Compression(Sparsity(0.6, method="pdp", mask_aware=True)),
    Compression(Sparsity(0.5, "2:4", ("attention",), "sparsegpt")),
    Compression(adapters=Adapters(4, sparsity=0.8)),
]
LENGTH = SETTINGS.sequence_length


def begun(compression: Compression, model: PreTrainedModel | None = None) -> tuple[PreTrainedModel, Compressor]:
    """A student that begins to be compressed; a given ``model`` was compressed before."""
    one = student() if model is None else model
    compressing = compressor(one, compression, windows(CORPUS.train, LENGTH)[:4], trained=model is not None)
    assert compressing is not None
    return one, compressing


def trained(compression: Compression, folder: Path, model: PreTrainedModel | None = None, **changes: object):  # type: ignore[no-untyped-def]
    """The student as it is saved, what was reported, and the result."""
    one, compressing = begun(compression, model)
    settings, report = replace(SETTINGS, **changes), Readings()  # type: ignore[arg-type]
    result: DistillResult = distill(one, Watched(TEACHER), CORPUS, settings, folder, report, compressing)
    compressing.leave()
    return one, report, result


@pytest.mark.parametrize("compression", EVERY, ids=lambda one: one.key)
def test_cut_and_resumed_is_as_if_never_cut(compression: Compression, tmp_path: Path) -> None:
    wanted, readings, _ = trained(compression, tmp_path / "whole")
    for step in (2, 7):  # between two refreshed roundings, and beyond half of the steps
        model, compressing = begun(compression)
        plan, folder = replace(SETTINGS, checkpoint_seconds=0.0), tmp_path / f"cut {step}"
        watched = Watched(TEACHER, after(step, Cut()))
        with pytest.raises(Cut):
            distill(model, watched, CORPUS, plan, folder, lambda *_: None, compressing)
        found, again, result = trained(compression, folder, checkpoint_seconds=0.0)
        assert result.resumed_from == step * SETTINGS.batch_tokens
        assert same(weights(found), weights(wanted))
        assert again.without_time() == readings.without_time()


@pytest.mark.parametrize("compression", EVERY, ids=lambda one: one.key)
def test_the_last_loss_is_that_of_the_exported_weights(compression: Compression, tmp_path: Path) -> None:
    model, _, result = trained(compression, tmp_path)
    round_weights(model, compression)
    losses = window_losses(model, GPT2, windows(CORPUS.validation, LENGTH))
    assert result.window_losses[CORPUS.name] == pytest.approx(losses, abs=1e-5)
    if compression.sparsity.level:
        assert measured_sparsity(model, compression.sparsity.matrices) == pytest.approx(
            compression.sparsity.level, abs=0.01
        )


@pytest.mark.parametrize("compression", EVERY[1:5], ids=lambda one: one.key)
def test_a_later_training_keeps_the_zeros(compression: Compression, tmp_path: Path) -> None:
    model, _, _ = trained(compression, tmp_path / "trial")
    before = [one.weight.detach() == 0 for one in layer_matrices(model)]
    values = weights(model)
    trained(compression, tmp_path / "final", model)
    assert not same(weights(model), values)
    after_it = [one.weight.detach() == 0 for one in layer_matrices(model)]
    assert all(bool((new[old]).all()) for old, new in zip(before, after_it, strict=True))


def test_only_adapters_train_and_are_merged(tmp_path: Path) -> None:
    before = weights(student())
    model, _, _ = trained(EVERY[-1], tmp_path)
    changed = {name for name, one in weights(model).items() if not torch.equal(one, before[name])}
    assert changed == {f"{one.name}.weight" for one in layer_matrices(model)}
    assert rate_of(EVERY[-1]) == 10


def test_adapters_cannot_undo_sparsity() -> None:
    with pytest.raises(InputError, match="would undo sparsity and quantization; leave one of them out"):
        begun(Compression(Sparsity(0.5), adapters=Adapters(4)))


def test_nothing_to_do_is_no_compressor() -> None:
    assert compressor(student(), Compression(), windows(CORPUS.train, LENGTH)) is None
