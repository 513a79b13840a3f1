"""A search whose disk gets full at two moments of its life ends with one line each time, and then finds the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_disk import needs_disks, on_disk, python
from small_search import arguments, write_text

pytestmark = pytest.mark.fault_slow

MOMENTS = [" complete", "evaluating"]
Runs = list[tuple[int, str]]


def runs_on(folder: Path, teacher: Path, moments: list[str]) -> Runs:
    """The exit code and the output of each run of the command."""
    needs_disks()
    disk = folder / "disk"
    disk.mkdir()
    changes = {"finalists": 1, "baselines": "no", "workers": 1, "scheduler": "none"}
    flags = arguments(teacher, write_text(folder), disk / "out", "s", **changes)
    command = ["python", "-m", "nas.search", *flags]
    done = on_disk(disk, "140m", *python("filling_search.py"), str(disk), json.dumps(moments), *command)
    assert done.returncode == 0, done.stderr[-3000:]
    return [(code, text) for code, text in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def disturbed(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_on(tmp_path_factory.mktemp("disturbed"), tiny_teacher_folder, MOMENTS)


def conclusion(text: str) -> list[str]:
    """What a search finds: the final comparison, and the readings on test text."""
    return re.findall(r"^(?:teacher|winner|runner-up|best stock) .*?$", text, re.MULTILINE)


@pytest.mark.parametrize("place", range(len(MOMENTS)))
def test_a_full_disk_ends_the_search_with_one_line_that_names_it_and_what_is_needed(
    disturbed: Runs, place: int
) -> None:
    code, text = disturbed[place]
    assert code == 2, text
    assert "Traceback" not in text
    (line,) = re.findall(r"^error: .*$", text, re.MULTILINE)
    assert re.search(r"the disk at \S+/disk \(of \S+\) has [\d,]+ bytes free; free some", line)
    assert "this search writes up to" in line
    assert text.rstrip().endswith(line)


def test_with_space_the_same_command_finds_what_an_undisturbed_search_finds(
    disturbed: Runs, tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    ((code, text),) = runs_on(tmp_path, tiny_teacher_folder, [])
    assert (code, disturbed[-1][0]) == (0, 0)
    assert len(conclusion(text)) > 5
    assert conclusion(disturbed[-1][1]) == conclusion(text)
