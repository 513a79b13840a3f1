"""Ray's own memory monitor ends processes: the search goes on, or says what to do.

The tests need no memory and no quiet machine. The search runs where a file stands in place of /proc/meminfo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bounded import run_bounded
from small_search import ROOT, clean_environment

PROGRAM = Path(__file__).with_name("short_of_memory.py")
SETTINGS = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "RAY_AUTH_MODE": "disabled",
    "RAY_memory_usage_threshold": "0.9",
    "RAY_memory_monitor_refresh_ms": "100",
}
MOUNT = 'mount --bind "$0" /proc/meminfo && exec "$@"'


@cache
def namespace() -> list[str]:
    """The command that runs another one with mounts of its own."""
    return ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c", MOUNT]


@pytest.fixture(scope="module", autouse=True)
def allowed(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("meminfo") / "meminfo"
    file.touch()
    try:
        subprocess.run([*namespace(), str(file), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this account may not mount a file over /proc/meminfo: {error}")


def searched(teacher: Path, folder: Path, workers: int, until: str) -> dict[str, Any]:
    """What the search left, see short_of_memory.py."""
    meminfo = folder / "meminfo"
    meminfo.touch()
    program = [sys.executable, str(PROGRAM), str(meminfo), str(teacher), str(folder), str(workers), until]
    command, environment = [*namespace(), str(meminfo), *program], clean_environment(**SETTINGS)
    done = run_bounded(command, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_search_goes_on_when_a_neighbour_gives_the_memory_back(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    result = searched(tiny_teacher_folder, tmp_path, 2, until="3")
    assert [state for state, _, _ in result["trials"]] == ["COMPLETE"] * 3
    assert len({key for _, key, _ in result["trials"]}) == 3
    assert (result["error"], result["finished"], result["again"]) == ("", 3, 0)


def test_a_neighbour_that_keeps_the_memory_ends_the_search_and_the_next_tries_again(
    tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    result = searched(tiny_teacher_folder, tmp_path, 2, until="never")
    assert "Ray ended a worker for lack of memory 4 times; " in result["error"]
    assert (result["finished"], result["trials"]) == (0, []), "no trial has failed: those that ran are queued again"
