"""Stored targets are the teacher's, and made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distilling import CORPUS, SETTINGS, TEACHER, Readings, student

from trials.cache import Cache
from trials.corpus import windows
from trials.distill import distill
from trials.targets import Targets, _write, load_targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_targets_train_as_the_teacher_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    for module in ("targets", "precision"):
        monkeypatch.setattr(f"trials.{module}.training_precision", lambda _: (dtype, "as this test says"))
    stored = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "cache"))
    assert stored.stored is not None
    online, offline = Readings(), Readings()
    distill(student(), Targets(TEACHER), CORPUS, SETTINGS, tmp_path / "online", online)
    distill(student(), stored, CORPUS, SETTINGS, tmp_path / "offline", offline)
    for (_, one), (_, other) in zip(online, offline, strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)


def test_targets_are_computed_once_and_those_too_large_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    first = load_targets(TEACHER, CORPUS, 16, cache)
    monkeypatch.setattr("trials.targets._write", lambda *_: pytest.fail("computed again"))
    again = load_targets(TEACHER, CORPUS, 16, cache)
    assert np.array_equal(again.stored, first.stored)
    monkeypatch.setattr("trials.targets.LIMIT_BYTES", 640 * 48 * 2 - 1)
    assert load_targets(TEACHER, CORPUS, 8, cache).stored is None


def test_targets_are_kept_or_not_as_one_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    assert load_targets(TEACHER, CORPUS, 16, cache, way="online").stored is None
    assert not any(tmp_path.rglob("hidden.npy"))
    monkeypatch.setattr("trials.targets.LIMIT_BYTES", 0)
    assert load_targets(TEACHER, CORPUS, 16, cache, way="cached").stored is not None


def test_targets_of_a_text_that_has_grown_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, written = Cache(tmp_path), []
    short = replace(CORPUS, train=CORPUS.train[: 16 * 15])
    whole = load_targets(TEACHER, CORPUS, 16, Cache(tmp_path / "other"))
    load_targets(TEACHER, short, 16, cache)
    monkeypatch.setattr("trials.targets._write", lambda *given: (written.append(len(given[2])), _write(*given)))
    grown = load_targets(TEACHER, CORPUS, 16, cache, first=15)
    assert written == [25]
    places = np.array([3, 14, 15, 39, 0])
    tokens = torch.from_numpy(windows(CORPUS.train, 16)[places].astype(np.int64))
    assert torch.equal(grown.hidden(places, tokens), whole.hidden(places, tokens))
