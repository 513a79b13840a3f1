"""Ctrl-C and SIGTERM, once in every stage of one study. The winner is that of a search that nothing disturbed."""

from __future__ import annotations

import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from driving import Driver
from small_search import write_text
from whole_search import (
    STUDY,
    TOKENS,
    finished_trials,
    results,
    running_in_mlflow,
    running_in_study,
    undisturbed,
    whole_search,
)

pytestmark = pytest.mark.fault_slow

PATIENCE = 60  # seconds in which every process must be gone
Strike = Callable[[Driver, Path], None]


def at(pattern: str) -> Strike:
    """When the command has printed such a line."""
    return lambda driver, folder: driver.wait_for(re.compile(pattern))


def with_process(pattern: str) -> Strike:
    """When the command has started such a process."""
    return lambda driver, folder: driver.wait_until(lambda: driver.has_process(pattern), pause=0.1)


def with_new(file: str) -> Strike:
    """When the command has written such a file of its study."""

    def wait(driver: Driver, folder: Path) -> None:
        path = folder / STUDY / file
        path.unlink(missing_ok=True)
        driver.wait_until(path.exists)

    return wait


def when_it_hears(driver: Driver, folder: Path) -> None:
    """When the command has an answer of its own to SIGTERM. It then imports what takes seconds."""
    mask = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)
    status = Path(f"/proc/{driver.process.pid}/status")
    driver.wait_until(lambda: bool(int(mask.findall(status.read_text())[0], 16) >> (signal.SIGTERM - 1) & 1))
    time.sleep(0.2)


STAGES: dict[str, Strike] = {
    "importing": when_it_hears,
    "Ray starts": with_process("gcs_server"),
    "Ray's agents start": with_process("agent"),
    "preparing": at("preparing teacher"),
    "screening": at("/8 screened"),
    "trials": at("trial .*: val loss"),
    "finals": at(f"after {TOKENS + TOKENS // 2:,} of {2 * TOKENS:,} tokens"),
    "test texts": at("done\\] teacher: "),
    "exporting": with_process("fresh_load"),
    "the report": with_new("report/results.md"),
    "the end": with_new("report/report.html"),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("struck")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_ends_the_search_in_every_stage(
    stage: str, number: signal.Signals, tiny_teacher_folder: Path, text: Path, folder: Path
) -> None:
    command = whole_search(tiny_teacher_folder, text)
    driver = Driver(command, folder)
    STAGES[stage](driver, folder)
    began = time.monotonic()
    family = driver.signal(number, alone=number == signal.SIGTERM)
    code = driver.finish()
    seconds = time.monotonic() - began
    printed, left = "".join(driver.lines), psutil.wait_procs(family, timeout=PATIENCE)[1]
    print(f"{number.name} while {stage}: {seconds:.1f} s, all processes gone after {time.monotonic() - began:.1f} s")
    assert code == 130, printed
    assert printed.splitlines()[-1] == f"interrupted; to continue: {shlex.join(command)}"
    assert "Traceback" not in printed
    assert left == []
    assert running_in_study(folder) == 0
    assert running_in_mlflow(folder) == 0


def test_in_the_end_everything_is_as_if_nothing_had_happened(
    tiny_teacher_folder: Path, text: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    driver = Driver(whole_search(tiny_teacher_folder, text), folder)
    assert driver.finish() == 0, "".join(driver.lines)
    quiet = undisturbed(tiny_teacher_folder, text, tmp_path_factory)
    assert results(folder) == results(quiet)
    assert running_in_mlflow(folder) == 0
    assert not list((folder / STUDY / "outbox").glob("*.json"))
    assert finished_trials(folder) == finished_trials(quiet)
