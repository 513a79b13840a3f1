"""Distillation: what it learns, that every trial sees the same, and that an interruption leaves no trace."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VOCAB, make_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel

from search_spaces.architecture import Architecture
from trials import distill as distillation
from trials.cache import Cache
from trials.checkpoint import discard_checkpoints
from trials.corpus import Corpus
from trials.distill import DistillResult, DistillSettings, NonFiniteLoss, distill, learning_rate, make_optimizer
from trials.families import FAMILIES
from trials.importance import compute_importance
from trials.prune import prune
from trials.targets import Targets, load_targets
from trials.teacher import Teacher

GPT2 = FAMILIES["gpt2"]
ARCHITECTURE = Architecture(2, 40, (4, 2), (10, 96))
SETTINGS = DistillSettings(
    tokens=640,  # 10 steps of 4 windows
    rungs=(192, 640),
    sequence_length=16,
    batch_tokens=64,
    learning_rate=3e-3,
    seed=0,
    identity="this trial",
    checkpoint_seconds=1e9,
)


@pytest.fixture(scope="module")
def teacher(tiny_gpt2: GPT2LMHeadModel) -> Teacher:
    return Teacher(Path(), tiny_gpt2, None, GPT2.shape(tiny_gpt2.config), "fingerprint")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    tokens = np.random.default_rng(0).integers(0, VOCAB, 16 * 60, dtype=np.uint16)
    return Corpus(tokens[:640], tokens[640:], "random", "fingerprint", "random tokens")


@pytest.fixture(scope="module")
def student(tiny_gpt2: GPT2LMHeadModel) -> Callable[[], PreTrainedModel]:
    """Makes the same student each time."""
    windows = torch.arange(64).reshape(4, 16)
    scores = compute_importance(tiny_gpt2, GPT2, windows)
    return lambda: prune(tiny_gpt2, scores, ARCHITECTURE)


class Readings(list[tuple[int, dict[str, float]]]):
    """A report which remembers; ``without_time`` is what must be the same on every machine."""

    def __call__(self, tokens: int, metrics: dict[str, float]) -> None:
        self.append((tokens, metrics))

    def without_time(self) -> list[tuple[int, dict[str, float]]]:
        return [(tokens, {**metrics, "seconds": 0.0}) for tokens, metrics in self]


class Cut(Exception):  # noqa: N818
    """The process ends here."""


class Watched(Targets):
    """Targets which remember the windows asked for, and call ``before(number of windows)`` first."""

    def __init__(self, teacher: Teacher, before: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(teacher)
        self.before, self.places = before, []

    def hidden(self, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        self.before(len(places))
        self.places.append(places.tolist())
        return super().hidden(places, tokens)


def after(calls: int, error: Exception) -> Callable[[int], None]:
    """Raises ``error`` when called once more than ``calls`` times."""
    left = iter(range(calls))

    def check(_: int) -> None:
        if next(left, None) is None:
            raise error

    return check


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Tensor], Readings, DistillResult]:
    model, readings = student(), Readings()
    result = distill(model, Targets(teacher), corpus, SETTINGS, tmp_path_factory.mktemp("uninterrupted"), readings)
    return weights(model), readings, result


def test_student_comes_nearer_to_the_teacher(
    uninterrupted: tuple[dict[str, Tensor], Readings, DistillResult],
) -> None:
    _, readings, result = uninterrupted
    assert [tokens for tokens, _ in readings] == [0, 192, 640]
    assert [(rung.tokens, rung.metrics) for rung in result.rungs] == readings
    assert "kl" not in readings[0][1]
    assert readings[2][1]["kl"] < 0.9 * readings[1][1]["kl"]
    assert readings[2][1]["seconds"] == result.seconds
    assert [metrics["seconds"] for _, metrics in readings] == sorted(metrics["seconds"] for _, metrics in readings)
    assert result.resumed_from == 0


@pytest.mark.parametrize(
    ("step", "seconds"), [(0, 0.0), (1, 0.0), (3, 0.0), (4, 0.0), (9, 0.0), (2, 1e9), (3, 1e9), (9, 1e9)]
)
def test_cut_and_resumed_is_as_if_never_cut(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    tmp_path: Path,
    uninterrupted: tuple[dict[str, Tensor], Readings, DistillResult],
    step: int,
    seconds: float,
) -> None:
    """Cut in ``step``, with a checkpoint before every step or at rungs alone."""
    plan = replace(SETTINGS, checkpoint_seconds=seconds)
    first, second, model = Readings(), Readings(), student()
    with pytest.raises(Cut):
        distill(student(), Watched(teacher, after(step, Cut())), corpus, plan, tmp_path / "cut", first)
    watched = Watched(teacher)
    result = distill(model, watched, corpus, plan, tmp_path / "cut", second)
    wanted, readings, _ = uninterrupted
    reached = step if not seconds else (3 if step >= 3 else 0)
    assert same(weights(model), wanted)
    assert second.without_time() == readings.without_time()
    assert first.without_time() == readings.without_time()[: len(first)]
    assert second[: len(first)] == first or reached < 3
    assert (len(watched.places), result.resumed_from) == (10 - reached, reached * 64)


def test_finished_run_is_reported_again_without_training(
    student: Callable[[], PreTrainedModel], teacher: Teacher, corpus: Corpus, tmp_path: Path
) -> None:
    model, again, first, second = student(), student(), Readings(), Readings()
    distill(model, Targets(teacher), corpus, SETTINGS, tmp_path, first)
    watched = Watched(teacher)
    distill(again, watched, corpus, SETTINGS, tmp_path, second)
    assert same(weights(again), weights(model))
    assert (second, watched.places) == (first, [])


def test_readings_are_durable_before_they_are_reported(
    student: Callable[[], PreTrainedModel], teacher: Teacher, corpus: Corpus, tmp_path: Path
) -> None:
    steps: list[list[str]] = []
    distill(
        student(),
        Targets(teacher),
        corpus,
        SETTINGS,
        tmp_path,
        lambda *_: steps.append(sorted(path.name for path in tmp_path.iterdir())),
    )
    assert steps == [[], ["checkpoint-00000003"], ["checkpoint-00000003", "checkpoint-00000010"]]
    discard_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cut_once(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    directory, plan = tmp_path_factory.mktemp("cut"), replace(SETTINGS, checkpoint_seconds=0)
    with pytest.raises(Cut):
        distill(student(), Watched(teacher, after(7, Cut())), corpus, plan, directory, Readings())
    assert sorted(path.name for path in directory.iterdir()) == ["checkpoint-00000006", "checkpoint-00000007"]
    return directory


@pytest.fixture
def cut_after_seven(cut_once: Path, tmp_path: Path) -> Path:
    """A directory with the checkpoints of steps 6 and 7."""
    return shutil.copytree(cut_once, tmp_path / "cut")


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("student.safetensors", "truncate"),
        ("student.safetensors", "flip"),
        ("optimizer.pt", "flip"),
        ("optimizer.pt", "remove"),
        ("progress.json", "flip"),
        ("manifest.json", "truncate"),
    ],
)
def test_damaged_checkpoint_falls_back_to_the_one_before(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    cut_after_seven: Path,
    uninterrupted: tuple[dict[str, Tensor], Readings, DistillResult],
    caplog: pytest.LogCaptureFixture,
    file: str,
    harm: str,
) -> None:
    path = cut_after_seven / "checkpoint-00000007" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    {"truncate": lambda: os.truncate(path, 9), "flip": lambda: path.write_bytes(content), "remove": path.unlink}[harm]()
    model = student()
    with caplog.at_level(logging.WARNING):
        result = distill(model, Targets(teacher), corpus, SETTINGS, cut_after_seven, Readings())
    assert result.resumed_from == 6 * 64
    assert same(weights(model), uninterrupted[0])
    assert "checkpoint-00000007 is not used" in caplog.text


def test_checkpoint_of_another_trial_is_refused(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    cut_after_seven: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched, model = Watched(teacher), student()
    result = distill(model, watched, corpus, replace(SETTINGS, identity="another"), cut_after_seven, Readings())
    assert (result.resumed_from, len(watched.places)) == (0, 10)
    assert "another recipe" in caplog.text


def test_half_written_checkpoint_is_cleared_away(
    student: Callable[[], PreTrainedModel], teacher: Teacher, corpus: Corpus, cut_after_seven: Path
) -> None:
    half = cut_after_seven / ".checkpoint-00000008.0123.tmp"
    half.mkdir()
    (half / "student.safetensors").write_bytes(b"half")
    result = distill(student(), Targets(teacher), corpus, SETTINGS, cut_after_seven, Readings())
    assert result.resumed_from == 7 * 64
    assert not half.exists()


def test_every_architecture_sees_the_same_windows_in_the_same_order(
    student: Callable[[], PreTrainedModel], teacher: Teacher, corpus: Corpus, tmp_path: Path
) -> None:
    one, other, third = Watched(teacher), Watched(teacher), Watched(teacher)
    distill(student(), one, corpus, SETTINGS, tmp_path / "one", Readings())
    distill(make_gpt2().requires_grad_(True), other, corpus, SETTINGS, tmp_path / "other", Readings())
    distill(student(), third, corpus, replace(SETTINGS, seed=1), tmp_path / "third", Readings())
    assert one.places == other.places != third.places
    assert sorted(place for batch in one.places for place in batch) == list(range(40))  # one epoch: every window once


@pytest.mark.parametrize("micro_tokens", [16, 48])
def test_micro_batches_change_nothing_but_rounding(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    tmp_path: Path,
    uninterrupted: tuple[dict[str, Tensor], Readings, DistillResult],
    monkeypatch: pytest.MonkeyPatch,
    micro_tokens: int,
) -> None:
    monkeypatch.setitem(distillation.MICRO_TOKENS, "cpu", micro_tokens)
    watched, readings = Watched(teacher), Readings()
    distill(student(), watched, corpus, SETTINGS, tmp_path, readings)
    assert {len(places) for places in watched.places} <= {micro_tokens // 16, 4 % (micro_tokens // 16)}
    for (_, one), (_, other) in zip(readings, uninterrupted[1], strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
        assert one.get("kl") == (other.get("kl") and pytest.approx(other["kl"], rel=1e-4))


def test_micro_batches_are_halved_when_memory_does_not_do(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(windows: int) -> None:
        if windows > 1:
            raise torch.OutOfMemoryError

    model, wanted = student(), student()
    distill(model, Watched(teacher, full), corpus, SETTINGS, tmp_path / "full", Readings())
    monkeypatch.setitem(distillation.MICRO_TOKENS, "cpu", 16)
    distill(wanted, Targets(teacher), corpus, SETTINGS, tmp_path / "wanted", Readings())
    assert same(weights(model), weights(wanted))


def test_memory_that_does_not_do_for_one_window_is_an_error(
    student: Callable[[], PreTrainedModel], teacher: Teacher, corpus: Corpus, tmp_path: Path
) -> None:
    watched = Watched(teacher, after(0, torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        distill(student(), watched, corpus, SETTINGS, tmp_path, Readings())


class Spoiled(Targets):
    """Targets which are NaN from the fifth batch on."""

    batches = 0

    def hidden(self, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        self.batches += 1
        return super().hidden(places, tokens) * (math.nan if self.batches >= 5 else 1)


def test_loss_that_is_not_finite_ends_the_trial(
    student: Callable[[], PreTrainedModel], teacher: Teacher, corpus: Corpus, tmp_path: Path
) -> None:
    model, readings = student(), Readings()
    with pytest.raises(NonFiniteLoss, match="step 5: training KL nan"):
        distill(model, Spoiled(teacher), corpus, SETTINGS, tmp_path, readings)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert [tokens for tokens, _ in readings] == [0, 192]


def test_student_that_is_not_finite_is_never_reported(
    student: Callable[[], PreTrainedModel], teacher: Teacher, corpus: Corpus, tmp_path: Path
) -> None:
    model, readings = student(), Readings()
    next(model.parameters()).data[0] = math.inf
    with pytest.raises(NonFiniteLoss, match="validation loss"):
        distill(model, Targets(teacher), corpus, SETTINGS, tmp_path, readings)
    assert not readings


def test_dropout_of_the_configuration_is_off(teacher: Teacher, corpus: Corpus, tmp_path: Path) -> None:
    plain = make_gpt2(1).requires_grad_(True)
    dropping = make_gpt2(1, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).requires_grad_(True).train()
    for number, model in enumerate((plain, dropping)):
        distill(model, Targets(teacher), corpus, SETTINGS, tmp_path / str(number), Readings())
    assert same(weights(plain), weights(dropping))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_targets_train_as_the_teacher_itself(
    student: Callable[[], PreTrainedModel],
    teacher: Teacher,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    for module in ("targets", "precision"):
        monkeypatch.setattr(f"trials.{module}.training_precision", lambda _: (dtype, "as this test says"))
    stored = load_targets(teacher, corpus, 16, Cache(tmp_path / "cache"))
    assert stored.stored is not None
    online, offline = Readings(), Readings()
    distill(student(), Targets(teacher), corpus, SETTINGS, tmp_path / "online", online)
    distill(student(), stored, corpus, SETTINGS, tmp_path / "offline", offline)
    for (_, one), (_, other) in zip(online, offline, strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)


def test_targets_are_computed_once_and_those_too_large_not_at_all(
    teacher: Teacher, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    first = load_targets(teacher, corpus, 16, cache)
    monkeypatch.setattr("trials.targets._write", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(load_targets(teacher, corpus, 16, cache).stored, first.stored)
    monkeypatch.setattr("trials.targets.LIMIT_BYTES", 640 * 48 * 2 - 1)
    assert load_targets(teacher, corpus, 8, cache).stored is None


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
