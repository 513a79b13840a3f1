"""Stored targets equal the teacher's, and are computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCAB
from distilling import CORPUS, GPT2, SETTINGS, TEACHER, Readings, student
from numpy.typing import NDArray

from trials.distill import distill as distillation
from trials.distill.distill import distill
from trials.losses.precision import training_precision
from trials.storage.cache import Cache
from trials.teacher.targets import (
    DRAWS,
    DrawnTargets,
    Targets,
    Way,
    _draw,
    _write,
    compute_share,
    load_targets,
    part_count,
)
from trials.text.corpus import windows


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
def test_stored_targets_train_as_the_teacher_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rounding: float
) -> None:
    """Losses agree up to rounding: other batch sizes change the last digits, and Adam's steps carry that on."""
    for module in ("teacher.targets", "losses.precision"):
        monkeypatch.setattr(f"trials.{module}.training_precision", lambda _: (dtype, "as this test says"))
    stored = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "cache"))
    assert stored.stored is not None
    online, offline = Readings(), Readings()
    distill(student(), Targets(TEACHER), CORPUS, SETTINGS, tmp_path / "online", online)
    distill(student(), stored, CORPUS, SETTINGS, tmp_path / "offline", offline)
    for (_, one), (_, other) in zip(online, offline, strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=rounding)


@pytest.mark.parametrize("way", ["cached", "drawn"])
def test_stored_targets_are_loaded_during_the_batch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    monkeypatch.setitem(distillation.MICRO_TOKENS, "cpu", 32)  # two micro-batches in a step of 64 tokens
    targets = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "cache"), way=way)
    original, calls = targets._read, list[tuple[str, list[int]]]()

    def watched(places: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        calls.append((threading.current_thread().name, places.tolist()))
        return original(places)

    monkeypatch.setattr(targets, "_read", watched)
    ahead, direct = Readings(), Readings()
    distill(student(), targets, CORPUS, SETTINGS, tmp_path / "ahead", ahead)
    monkeypatch.setattr(targets, "read_ahead", lambda _: None)
    distill(student(), targets, CORPUS, SETTINGS, tmp_path / "direct", direct)
    half, here = len(calls) // 2, threading.current_thread().name
    assert half == 2 * SETTINGS.steps, "each is read once"
    assert [name for name, _ in calls] == [here] + (half - 1) * ["targets_0"] + half * [here]
    assert [places for _, places in calls[:half]] == [places for _, places in calls[half:]]
    assert [metrics["val_loss"] for _, metrics in ahead] == [metrics["val_loss"] for _, metrics in direct]


def test_targets_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    first = load_targets(TEACHER, CORPUS, 16, cache)
    monkeypatch.setattr("trials.teacher.targets._write", lambda *_: pytest.fail("computed again"))
    again = load_targets(TEACHER, CORPUS, 16, cache)
    assert np.array_equal(again.stored, first.stored)


def test_targets_are_kept_or_not_as_one_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    assert load_targets(TEACHER, CORPUS, 16, cache, way="online").stored is None
    assert not any(tmp_path.rglob("*.npy"))
    assert isinstance(load_targets(TEACHER, CORPUS, 16, cache, way="drawn"), DrawnTargets)
    assert not any(tmp_path.rglob("hidden.npy"))
    dtype, _ = training_precision("cpu")
    monkeypatch.setattr("trials.teacher.targets.LIMIT_BYTES", 640 * 48 * dtype.itemsize)
    assert load_targets(TEACHER, CORPUS, 16, cache).stored is not None
    monkeypatch.setattr("trials.teacher.targets.LIMIT_BYTES", 640 * 48 * dtype.itemsize - 1)
    assert isinstance(load_targets(TEACHER, CORPUS, 8, cache), DrawnTargets)
    assert load_targets(TEACHER, CORPUS, 16, cache, way="cached").stored is not None


def test_targets_of_a_text_that_has_grown_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, written = Cache(tmp_path), []
    short = replace(CORPUS, train=CORPUS.train[: 16 * 15])
    whole = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "other"))
    load_targets(TEACHER, short, 16, cache)
    monkeypatch.setattr("trials.teacher.targets._write", lambda *given: (written.append(len(given[2])), _write(*given)))
    grown = load_targets(TEACHER, CORPUS, 16, cache, first=15)
    assert written == [25]
    places = np.array([3, 14, 15, 39, 0])
    tokens = torch.from_numpy(windows(CORPUS.train, 16)[places].astype(np.int64))
    assert torch.equal(grown.hidden(places, tokens), whole.hidden(places, tokens))


@pytest.mark.parametrize("way", ["cached", "drawn"])
def test_parts_that_others_have_computed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    """40 windows in parts of 12: two helpers compute two parts each, nobody computes more, and rows are in order."""
    monkeypatch.setattr("trials.teacher.targets.PART_TOKENS", 16 * 12)
    assert part_count(TEACHER.shape, 640, "cpu", way) == 4
    alone = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "alone"), way=way)
    cache, computed = Cache(tmp_path / "shared"), list[int]()
    for name, compute in (("_write", _write), ("_draw", _draw)):

        def counted(*given: Any, compute: Callable[..., None] = compute) -> None:
            computed.append(len(given[2]))
            compute(*given)

        monkeypatch.setattr(f"trials.teacher.targets.{name}", counted)
    for place, sizes in ((1, [4, 12]), (0, [12, 12])):  # from the last part on
        computed.clear()
        compute_share(TEACHER, CORPUS, 16, cache, way, place, 2)
        assert computed == sizes
    computed.clear()
    together = load_targets(TEACHER, CORPUS, 16, cache, first=40, way=way)
    assert not computed
    assert divergence(together) == divergence(alone)
    if way == "cached":
        monkeypatch.setattr("trials.teacher.targets.PART_TOKENS", 640)
        assert divergence(load_targets(TEACHER, CORPUS, 16, cache, way=way)) == divergence(alone)


def test_an_online_teacher_has_no_parts(tmp_path: Path) -> None:
    assert part_count(TEACHER.shape, 640, "cpu", "online") == 0
    compute_share(TEACHER, CORPUS, 16, Cache(tmp_path), "online", 0, 1)
    assert not any(tmp_path.rglob("*.npy"))


PLACES = np.array([3, 14, 15, 39, 0])
HIDDEN = torch.randn(80, 24, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(VOCAB, 24, generator=torch.Generator().manual_seed(1))


def divergence(targets: Targets) -> float:
    """The divergence of a student with final states `HIDDEN` and output projection `WEIGHT` on windows `PLACES`."""
    tokens = torch.from_numpy(windows(CORPUS.train, 16)[PLACES].astype(np.int64))
    return float(targets.divergence(HIDDEN, WEIGHT, PLACES, tokens))


def test_drawn_targets_are_kept_as_they_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "one"), way="drawn")
    other = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "other"), way="drawn")
    assert divergence(first) == divergence(other)
    monkeypatch.setattr("trials.teacher.targets._draw", lambda *_: pytest.fail("drawn again"))
    assert divergence(load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "one"), way="drawn")) == divergence(first)
    assert isinstance(first, DrawnTargets)
    assert (first.ids[0].shape, first.ids[0].dtype) == ((40, 16, DRAWS), np.uint16)


def test_drawn_targets_are_the_teachers_in_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trials.teacher.targets.DRAWS", 4_000)
    drawn = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path), way="drawn")
    assert divergence(drawn) == pytest.approx(divergence(Targets(TEACHER)), rel=0.01)


def test_drawn_targets_of_a_text_that_has_grown_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, written = Cache(tmp_path), []
    short = replace(CORPUS, train=CORPUS.train[: 16 * 15])
    before = load_targets(TEACHER, short, 16, cache, way="drawn")
    monkeypatch.setattr("trials.teacher.targets._draw", lambda *given: (written.append(len(given[2])), _draw(*given)))
    grown = load_targets(TEACHER, CORPUS, 16, cache, first=15, way="drawn")
    assert written == [25]
    assert isinstance(before, DrawnTargets)
    assert isinstance(grown, DrawnTargets)
    assert np.array_equal(grown.ids[0], before.ids[0])
    assert np.array_equal(grown.likelihoods[0], before.likelihoods[0])


def test_students_learn_from_drawn_targets_what_they_do_from_all(tmp_path: Path) -> None:
    """Compares exact divergences from the teacher: before training, and after it with exact and with drawn targets."""
    drawn = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "cache"), way="drawn")
    places = np.arange(40)
    tokens = torch.from_numpy(windows(CORPUS.train, 16).astype(np.int64))
    found = []
    for name, targets in {"before": None, "exact": Targets(TEACHER), "drawn": drawn}.items():
        model = student()
        if targets is not None:
            distill(model, targets, CORPUS, SETTINGS, tmp_path / name, Readings())
        with torch.no_grad():
            hidden, weight = GPT2.backbone(model, tokens).flatten(0, 1), GPT2.output_weight(model)
            found.append(float(Targets(TEACHER).divergence(hidden, weight, places, tokens)))
    before, exact, after = found
    assert exact < 0.9 * before
    assert after - exact < 0.1 * (before - exact)
