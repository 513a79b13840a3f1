"""One study through the death of its driver and through Ctrl-C, continued each time by the same command."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest
from driving import PATIENCE, Driver
from optuna.trial import FrozenTrial, TrialState
from small_search import arguments, sizes, trials_in, write_text

from nas.study.sampler import INTERRUPTED
from nas.study.trial_records import SCREENED
from search_spaces.architecture import Architecture

STUDY, TRIALS, TOKENS = "mortal", 4, 65_536
FIRST_RUNG = TOKENS // 4
COMPLETE = re.compile(r"of 65,536 tokens, complete")
IN_THE_MIDDLE = re.compile(r"after 16,384 of")
FINAL_COMPLETE, FINAL_HALF_WAY = re.compile(r"of 131,072 tokens, complete"), re.compile(r"after 98,304 of 131,072")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mortal")


@pytest.fixture(scope="module")
def command(output: Path, tiny_teacher_folder: Path) -> list[str]:
    changes = {"trials": TRIALS, "tokens_per_trial": TOKENS, "workers": 1, "scheduler": "none"}
    changes |= {"finalists": 2, "baselines": "no", "space": "fine"}
    teacher, text = (Path(os.path.relpath(path, output)) for path in (tiny_teacher_folder, write_text(output)))
    return ["python", "-m", "nas.search", *arguments(teacher, text, Path(), STUDY, **changes)]


@pytest.fixture(scope="module")
def killed(command: list[str], output: Path) -> list[FrozenTrial]:
    """The study as SIGKILL left it, in the middle of the second trial."""
    driver = Driver(command, output)
    driver.wait_for(COMPLETE)
    driver.wait_for(IN_THE_MIDDLE)
    family = driver.signal(signal.SIGKILL)
    assert driver.finish() == -signal.SIGKILL
    _, orphans = psutil.wait_procs(family, timeout=60)  # Ray's processes notice that their driver is gone
    for process in orphans:
        process.kill()
    return trials_in(output, STUDY)


@pytest.fixture(scope="module")
def interrupted(command: list[str], output: Path, killed: list[FrozenTrial]) -> tuple[int, str, list[psutil.Process]]:
    """Exit code and output of the second run, ended by Ctrl-C in the middle of a trial, and what outlived it."""
    driver = Driver(command, output)
    driver.wait_for(COMPLETE)
    driver.wait_for(IN_THE_MIDDLE)
    family = driver.signal(signal.SIGINT)
    code = driver.finish()
    return code, "".join(driver.lines), psutil.wait_procs(family, timeout=PATIENCE)[1]


@pytest.fixture(scope="module")
def cut_in_the_end(
    interrupted: tuple[int, str, list[psutil.Process]], output: Path
) -> tuple[int, str, list[psutil.Process]]:
    """The same of the third run, by the command that the second printed, ended by Ctrl-C in the second final."""
    (line,) = re.findall(r"interrupted; to continue: (.*)", interrupted[1])
    driver = Driver(shlex.split(line), output)
    driver.wait_for(FINAL_COMPLETE)
    driver.wait_for(FINAL_HALF_WAY)
    family = driver.signal(signal.SIGINT)
    code = driver.finish()
    return code, "".join(driver.lines), psutil.wait_procs(family, timeout=PATIENCE)[1]


@pytest.fixture(scope="module")
def last_words(cut_in_the_end: tuple[int, str, list[psutil.Process]], output: Path) -> str:
    """The output of the fourth run, which came to the end."""
    (line,) = re.findall(r"interrupted; to continue: (.*)", cut_in_the_end[1])
    driver = Driver(shlex.split(line), output)
    code = driver.finish()
    assert code == 0, "".join(driver.lines)
    return "".join(driver.lines)


@pytest.fixture(scope="module")
def finished(last_words: str, output: Path) -> list[FrozenTrial]:
    """The study in the end."""
    return trials_in(output, STUDY)


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that came to an end of their own."""
    return [one for one in trials if one.state in ENDED and one.user_attrs.get("reason") != INTERRUPTED]


def test_kill_left_a_trial_running(killed: list[FrozenTrial]) -> None:
    assert [one.state for one in killed].count(TrialState.RUNNING) == 1
    assert len(counted(killed)) == 1


def test_interrupt_ends_with_130_and_the_command(
    interrupted: tuple[int, str, list[psutil.Process]], command: list[str]
) -> None:
    code, text, _ = interrupted
    assert code == 130
    assert f"interrupted; to continue: {shlex.join(command)}\n" in text
    assert "Traceback" not in text


def test_interrupt_in_the_final_stage_ends_alike(
    cut_in_the_end: tuple[int, str, list[psutil.Process]], command: list[str]
) -> None:
    test_interrupt_ends_with_130_and_the_command(cut_in_the_end, command)
    assert cut_in_the_end[2] == []


def test_what_was_left_of_the_finals_is_done_and_nothing_else(last_words: str, output: Path) -> None:
    assert f"{TRIALS} of {TRIALS} trials are done already" in last_words
    assert "1 of 2 finals are done already" in last_words
    assert len(FINAL_COMPLETE.findall(last_words)) == 1
    results = [json.loads(file.read_text())["result"] for file in (output / STUDY / "finals").glob("*/result.json")]
    assert sorted(one["resumed_from"] for one in results) == [0, TOKENS // 2]


def test_interrupt_leaves_nothing_running(interrupted: tuple[int, str, list[psutil.Process]]) -> None:
    assert interrupted[2] == []


def test_each_architecture_is_finished_once(finished: list[FrozenTrial]) -> None:
    assert Counter(one.state for one in finished if one.state not in ENDED) == {}
    assert [one.state for one in counted(finished)] == [TrialState.COMPLETE] * TRIALS
    assert len({sizes(one) for one in counted(finished)}) == TRIALS


def test_finished_trials_are_not_run_again(killed: list[FrozenTrial], finished: list[FrozenTrial]) -> None:
    for before in counted(killed):
        assert finished[before.number] == before
        assert [sizes(one) for one in finished].count(sizes(before)) == 1


def test_unfinished_trials_go_on_from_their_checkpoints(finished: list[FrozenTrial]) -> None:
    broken = [sizes(one) for one in finished if one.user_attrs.get("reason") == INTERRUPTED]
    assert len(broken) == 2  # by the kill and by Ctrl-C; of one architecture, or of two
    assert {sizes(one) for one in counted(finished)} >= set(broken)
    for one in counted(finished):
        assert (one.user_attrs["metrics"]["resumed_from"] >= FIRST_RUNG) == (sizes(one) in broken)


def test_what_was_screened_is_not_screened_again(
    finished: list[FrozenTrial], interrupted: tuple[int, str, list[psutil.Process]], last_words: str, output: Path
) -> None:
    assert " screened]" not in interrupted[1] + last_words
    kept = optuna.load_study(storage=f"sqlite:///{output}/studies.db", study_name=STUDY).user_attrs
    groups = [group for name, group in kept.items() if name.startswith(f"{SCREENED} ")]
    losses = {key: loss for group in groups for key, loss in group.items()}
    order = sorted(losses, key=losses.__getitem__)
    keys = [Architecture.uniform(**one.params).key for one in counted(finished)]
    first, *others = [one.user_attrs["origin"] for one in counted(finished)]
    assert first == "best before retraining"
    assert set(others) <= {"best stock before retraining", "screen"}
    if "best stock before retraining" not in others:
        assert keys == order[:TRIALS]
    assert keys[0] == order[0]
