"""A disk that is full in the middle of a write: nothing half is visible, the line names the disk, and it goes on."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from small_disk import needs_disks, on_disk, python

QUICK = ("cache", "cached targets", "checkpoint", "outbox", "study")
SLOW = ("drawn targets", "streams", "result", "export", "mlflow")


def filled(folder: Path, *kinds: str) -> dict[str, dict[str, Any]]:
    """What came of each of ``kinds``, see `filling`."""
    needs_disks()
    done = on_disk(folder, "1m", *python("filling.py"), str(folder), *kinds)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return filled(tmp_path_factory.mktemp("disk"), *QUICK, "tracker")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return filled(tmp_path_factory.mktemp("disk"), *SLOW)


def check(found: dict[str, Any]) -> None:
    assert found["problems"] == []
    assert found["failures"] > 2, "the disk was never full"
    assert found["made"] == found["expected"]


@pytest.mark.parametrize("kind", QUICK)
def test_a_write_to_a_full_disk_leaves_nothing_half_and_succeeds_when_there_is_space(
    quick: dict[str, dict[str, Any]], kind: str
) -> None:
    check(quick[kind])


@pytest.mark.fault_slow
@pytest.mark.parametrize("kind", SLOW)
def test_so_does_a_write_that_takes_longer(slow: dict[str, dict[str, Any]], kind: str) -> None:
    check(slow[kind])


def test_mapped_memory_gets_its_space_first(quick: dict[str, dict[str, Any]]) -> None:
    (last,) = quick["cached targets"]["messages"]
    assert re.search(r"hidden\.npy takes [\d,]+ bytes", last), last


def test_events_without_space_wait_in_memory_and_none_is_lost(quick: dict[str, dict[str, Any]]) -> None:
    assert quick["tracker"]["made"] == [20, True]


@pytest.mark.fault_slow
def test_the_command_that_exports_says_one_line_and_writes_when_there_is_space(
    tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    needs_disks()
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["-m", "nas.export", str(tiny_teacher_folder), "--format", "fp16", "--output", str(disk / "half")]
    for size, code in (("64k", 2), ("8m", 0)):
        done = on_disk(disk, size, sys.executable, *command)
        assert done.returncode == code, done.stderr
        if code:
            (line,) = [one for one in done.stderr.splitlines() if "error" in one.lower()]
            assert re.search(
                rf"the disk at {disk} \(of \S+\) has [\d,]+ bytes free; free some; nothing was written", line
            )
            assert "Traceback" not in done.stderr
