"""Somebody removes the study's database while a search runs: one line, the file is back, nothing is trained twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from driving import Driver
from small_search import arguments, trials_in, write_text

pytestmark = pytest.mark.fault_slow


def test_a_removed_database_is_put_back_and_the_same_command_continues(
    tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    changes = {"workers": 1, "scheduler": "none", "trials": 4}
    flags = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path / "out", "s", **changes)
    first = Driver(["python", "-m", "nas.search", *flags], tmp_path)
    first.wait_for(re.compile(", complete"))
    (tmp_path / "out" / "studies.db").unlink()
    assert first.finish() == 2, first.lines
    text = "".join(first.lines)
    (line,) = re.findall(r"^error: .*$", text, re.MULTILINE)
    assert f"{tmp_path}/out/studies.db was removed while the search ran; it is there again; nothing that is" in line
    assert "Traceback" not in text

    known, results = trials_in(tmp_path / "out", "s"), written(tmp_path)
    assert [one.state.name for one in known].count("COMPLETE") >= 1
    assert results
    second = Driver(["python", "-m", "nas.search", *flags], tmp_path)
    assert second.finish() == 0, second.lines
    found = trials_in(tmp_path / "out", "s")
    assert [one.state.name for one in found].count("COMPLETE") == 4
    assert [one for one in known if one.state.is_finished() and found[one.number] != one] == []
    assert results.items() <= written(tmp_path).items()


def written(folder: Path) -> dict[str, int]:
    """When each result of a trial was written, in nanoseconds, by its name."""
    return {str(one): one.stat().st_mtime_ns for one in (folder / "out" / "s" / "trials").glob("*/result.json")}
