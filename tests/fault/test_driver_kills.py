"""SIGKILL to the driver at random moments, again and again, until a search has come to its end."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from driving import Driver
from optuna.trial import TrialState
from small_search import sizes, trials_in, write_text
from whole_search import (
    STUDY,
    TRIALS,
    finished_trials,
    places_in_mlflow,
    results,
    running_in_mlflow,
    running_in_study,
    undisturbed,
    whole_search,
)

pytestmark = pytest.mark.fault_slow

SEED, KILLS = 27, 6
LINES = (2, 24)  # after so many lines of output the first driver is killed; each later one may print more by a few
MORE, DELAY = 7, 0.5  # lines, and seconds after a line
PATIENCE = 120  # seconds in which whatever the killed drivers have left must be gone


def test_a_driver_that_is_killed_again_and_again_loses_nothing(
    tiny_teacher_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The next driver starts at once, while processes of the one before may still live."""
    struck, text = tmp_path / "struck", write_text(tmp_path)
    struck.mkdir()
    command = whole_search(tiny_teacher_folder, text)
    chance, known = random.Random(SEED), finished_trials(struck)
    left: list[psutil.Process] = []
    for kill in range(KILLS):
        driver = Driver(command, struck)
        lines, delay = chance.randint(LINES[0] + MORE * kill, LINES[1] + MORE * kill), chance.uniform(0, DELAY)
        driver.wait_for_lines(lines)
        time.sleep(delay)
        left += driver.signal(signal.SIGKILL)
        assert driver.finish() in (-signal.SIGKILL, 0), "".join(driver.lines)  # 0: it was done before the signal
        found = finished_trials(struck)
        print(f"killed after {lines} lines and {delay:.2f} s: {len(found)} trials are complete")
        assert {key: found.get(key) for key in known} == known
        known = found
    driver = Driver(command, struck)
    assert driver.finish() == 0, "".join(driver.lines)
    assert "Traceback" not in "".join(driver.lines)
    assert psutil.wait_procs(left, timeout=PATIENCE)[1] == []

    quiet = undisturbed(tiny_teacher_folder, text, tmp_path_factory)
    assert results(struck) == results(quiet)
    assert finished_trials(struck) == finished_trials(quiet)
    assert_all_ended(struck)


def assert_all_ended(output: Path) -> None:
    """Every trial is complete, or it has a reason and its architecture was tried again. MLflow has each once."""
    trials = trials_in(output, STUDY)
    complete = {sizes(one) for one in trials if one.state == TrialState.COMPLETE}
    assert len(complete) == TRIALS
    for one in trials:
        if one.state != TrialState.COMPLETE:
            assert one.state == TrialState.FAIL
            assert one.user_attrs["reason"]
            assert sizes(one) in complete
    assert running_in_study(output) == running_in_mlflow(output) == 0
    places = places_in_mlflow(output)
    assert set(places.values()) == {1}
    assert {str(one.number) for one in trials if one.state == TrialState.COMPLETE} <= set(places)
