"""An interruption does not change the result: checkpoints, and damaged ones."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from distilling import CORPUS, SETTINGS, TEACHER, Cut, Readings, Watched, after, same, student, uninterrupted, weights

from trials.distill import checkpoint
from trials.distill.checkpoint import discard_checkpoints
from trials.distill.distill import distill
from trials.teacher.targets import Targets


@pytest.mark.parametrize(
    ("step", "seconds"), [(0, 0.0), (1, 0.0), (3, 0.0), (4, 0.0), (9, 0.0), (2, 1e9), (3, 1e9), (9, 1e9)]
)
def test_cut_and_resumed_is_as_if_never_cut(
    tmp_path: Path,
    step: int,
    seconds: float,
) -> None:
    """The run is cut in ``step``, with a checkpoint before every step or at rungs only."""
    plan = replace(SETTINGS, checkpoint_seconds=seconds)
    first, second, model = Readings(), Readings(), student()
    with pytest.raises(Cut):
        distill(student(), Watched(TEACHER, after(step, Cut())), CORPUS, plan, tmp_path / "cut", first)
    watched = Watched(TEACHER)
    result = distill(model, watched, CORPUS, plan, tmp_path / "cut", second)
    wanted, readings, _ = uninterrupted()
    reached = step if not seconds else (3 if step >= 3 else 0)
    assert same(weights(model), wanted)
    assert second.without_time() == readings.without_time()
    assert first.without_time() == readings.without_time()[: len(first)]
    assert second[: len(first)] == first or reached < 3
    assert (len(watched.places), result.resumed_from) == (10 - reached, reached * 64)


def test_rungs_are_durable_before_they_are_reported_and_the_last_has_no_checkpoint(tmp_path: Path) -> None:
    steps: list[list[str]] = []
    distill(
        student(),
        Targets(TEACHER),
        CORPUS,
        SETTINGS,
        tmp_path,
        lambda *_: steps.append(sorted(path.name for path in tmp_path.iterdir())),
    )
    assert steps == [[], ["checkpoint-00000003"], ["checkpoint-00000003"]]
    discard_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of the checkpoint of step 3 ends only when step 6 begins. Its rung is reported then, with its state."""
    may_end, events, write = Event(), [], checkpoint.write_sealed

    def slow(path: Path, writer: Callable[[Path], None]) -> None:
        assert may_end.wait(60), "training waits for the checkpoint"
        write(path, writer)

    def before(_: int) -> None:
        events.append("step")
        if events.count("step") == 6:
            may_end.set()

    monkeypatch.setattr(checkpoint, "write_sealed", slow)
    model = student()
    distill(model, Watched(TEACHER, before), CORPUS, SETTINGS, tmp_path, lambda tokens, _: events.append(tokens))
    assert events.index(192) >= 6
    assert [one for one in events if one != "step"] == [0, 192, 640]
    assert same(weights(model), uninterrupted()[0])
    resumed = student()
    assert distill(resumed, Targets(TEACHER), CORPUS, SETTINGS, tmp_path, Readings()).resumed_from == 192
    assert same(weights(resumed), weights(model)), "the checkpoint has the state of a later step"


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, writer: Callable[[Path], None]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_sealed", full)
    readings = Readings()
    with pytest.raises(OSError, match="No space left"):
        distill(student(), Targets(TEACHER), CORPUS, SETTINGS, tmp_path, readings)
    assert [tokens for tokens, _ in readings] == [0]


@pytest.fixture(scope="module")
def cut_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    directory, plan = tmp_path_factory.mktemp("cut"), replace(SETTINGS, checkpoint_seconds=0)
    with pytest.raises(Cut):
        distill(student(), Watched(TEACHER, after(7, Cut())), CORPUS, plan, directory, Readings())
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
    cut_after_seven: Path,
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
        result = distill(model, Targets(TEACHER), CORPUS, SETTINGS, cut_after_seven, Readings())
    assert result.resumed_from == 6 * 64
    assert same(weights(model), uninterrupted()[0])
    assert "checkpoint-00000007 is not used" in caplog.text


def test_checkpoint_of_another_trial_is_refused(
    cut_after_seven: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched, model = Watched(TEACHER), student()
    result = distill(model, watched, CORPUS, replace(SETTINGS, identity="another"), cut_after_seven, Readings())
    assert (result.resumed_from, len(watched.places)) == (0, 10)
    assert "another recipe" in caplog.text


def test_half_written_checkpoint_is_cleared_away(cut_after_seven: Path) -> None:
    half = cut_after_seven / ".checkpoint-00000008.0123.tmp"
    half.mkdir()
    (half / "student.safetensors").write_bytes(b"half")
    result = distill(student(), Targets(TEACHER), CORPUS, SETTINGS, cut_after_seven, Readings())
    assert result.resumed_from == 7 * 64
    assert not half.exists()
