"""Stored targets are the teacher's, and made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from distilling import CORPUS, SETTINGS, TEACHER, Readings, student

from trials.cache import Cache
from trials.distill import distill
from trials.targets import Targets, load_targets


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
    assert np.array_equal(load_targets(TEACHER, CORPUS, 16, cache).stored, first.stored)
    monkeypatch.setattr("trials.targets.LIMIT_BYTES", 640 * 48 * 2 - 1)
    assert load_targets(TEACHER, CORPUS, 8, cache).stored is None
