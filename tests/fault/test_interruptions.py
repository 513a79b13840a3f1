"""Ctrl-C and SIGTERM, once in every stage of one study. The winner is that of a search that nothing disturbed."""

from __future__ import annotations

import hashlib
import re
import shlex
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from driving import Driver
from optuna.trial import TrialState
from small_search import arguments, trials_in, write_text

pytestmark = pytest.mark.fault_slow

STUDY, TOKENS = "struck", 16_384
PATIENCE = 60  # seconds in which every process must be gone
Strike = Callable[[Driver, Path], None]


def at(pattern: str) -> Strike:
    """When the command has printed such a line."""
    return lambda driver, folder: driver.wait_for(re.compile(pattern))


def with_process(pattern: str) -> Strike:
    """When the command has started such a process."""
    return lambda driver, folder: driver.wait_until(lambda: driver.has_process(pattern))


def with_new(file: str) -> Strike:
    """When the command has written such a file of its study."""

    def wait(driver: Driver, folder: Path) -> None:
        path = folder / STUDY / file
        path.unlink(missing_ok=True)
        driver.wait_until(path.exists)

    return wait


STAGES: dict[str, Strike] = {
    "importing": lambda driver, folder: time.sleep(1.0),
    "Ray starts": with_process("gcs_server"),
    "Ray's agents start": with_process("agent"),
    "the plan is printed": at("^output "),
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
def command(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_folder: Path) -> Callable[[Path], list[str]]:
    text = write_text(tmp_path_factory.mktemp("text"))
    changes = {"trials": 3, "screened": 8, "tokens_per_trial": TOKENS, "workers": 1, "scheduler": "none"}
    changes |= {"finalists": 2, "baselines": "no", "test": f"unseen={text}"}

    def make(output: Path) -> list[str]:
        flags = arguments(tiny_teacher_folder, text, Path(), STUDY, **changes)
        return ["python", "-m", "nas.search", *flags]

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("struck")


def running_in_mlflow(output: Path) -> int:
    """How many runs MLflow believes to be running. Messages that wait for the next run may say otherwise."""
    if not (output / "mlflow.db").exists() or any((output / STUDY / "outbox").glob("*.json")):
        return 0
    with closing(sqlite3.connect(output / "mlflow.db")) as store:
        return int(store.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0])


def running_in_study(output: Path) -> int:
    try:
        return sum(one.state == TrialState.RUNNING for one in trials_in(output, STUDY))
    except KeyError:  # it was struck before there was a study
        return 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_ends_the_search_in_every_stage(
    stage: str, number: signal.Signals, command: Callable[[Path], list[str]], folder: Path
) -> None:
    driver = Driver(command(folder), folder)
    STAGES[stage](driver, folder)
    began = time.monotonic()
    family = driver.signal(number, alone=number == signal.SIGTERM)
    code = driver.finish()
    seconds = time.monotonic() - began
    text, left = "".join(driver.lines), psutil.wait_procs(family, timeout=PATIENCE)[1]
    print(f"{number.name} while {stage}: {seconds:.1f} s, all processes gone after {time.monotonic() - began:.1f} s")
    assert code == 130, text
    assert text.splitlines()[-1] == f"interrupted; to continue: {shlex.join(command(folder))}"
    assert "Traceback" not in text
    assert left == []
    assert running_in_study(folder) == 0
    assert running_in_mlflow(folder) == 0


def results(output: Path) -> tuple[str, list[str]]:
    """The digest of the winner's weights, and the final table without times."""
    weights = (output / STUDY / "best" / "model.safetensors").read_bytes()
    table = (output / STUDY / "report" / "final.csv").read_text().splitlines()
    columns = [
        place for place, name in enumerate(table[0].split(",")) if "second" not in name and name != "resumed_from"
    ]
    return hashlib.sha256(weights).hexdigest(), [",".join(line.split(",")[at] for at in columns) for line in table]


def test_in_the_end_everything_is_as_if_nothing_had_happened(
    command: Callable[[Path], list[str]], folder: Path, tmp_path: Path
) -> None:
    for output in (folder, tmp_path):
        driver = Driver(command(output), output)
        assert driver.finish() == 0, "".join(driver.lines)
    assert results(folder) == results(tmp_path)
    assert running_in_mlflow(folder) == 0
    assert not list((folder / STUDY / "outbox").glob("*.json"))
    for output in (folder, tmp_path):
        complete = [one for one in trials_in(output, STUDY) if one.state == TrialState.COMPLETE]
        assert len(complete) == 3
