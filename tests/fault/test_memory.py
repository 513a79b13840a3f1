"""Ray's own memory monitor ends a worker: the search goes on, or says what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_search import arguments, write_text

from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.running.client import FINAL, LOSS, TOKENS
from nas.running.session import ray_session
from nas.running.tune_run import run_trials
from nas.running.workers import WORKER_DEATHS, Task, open_workers
from nas.study.records import TrialRecord
from nas.study.study import SearchStudy
from search_spaces.errors import InputError

SPARE = 5 * 2**30  # bytes that the rest of the machine may take meanwhile


def hungry(folder: Path, times: int) -> Task:
    """A trial without work, but the second one asked takes all memory in its first ``times`` attempts."""

    def train(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {TOKENS: 0, LOSS: 5.0}
        key = str(spec["architecture"])
        with (folder / "asked").open("a") as asked:
            asked.write(f"{key}\n")
        keys = (folder / "asked").read_text().splitlines()
        if list(dict.fromkeys(keys))[1:2] == [key] and keys.count(key) <= times:
            ballast = []
            for _ in range(200):  # until it is ended; never more than the machine has
                ballast.append(b"x" * (SPARE // 50))
                time.sleep(0.05)
            time.sleep(60)
        time.sleep(1)
        yield {TOKENS: 4096, LOSS: 4.0}
        yield {FINAL: True, TOKENS: 4096, LOSS: 4.0}

    return train


def searched(
    teacher: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, task: Task, workers: int = 1
) -> tuple[Plan, list[TrialRecord]]:
    memory = psutil.virtual_memory()
    most = (memory.total - memory.available + SPARE) / memory.total
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{most:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    changes: dict[str, Any] = {"trials": 3, "sampler": "random", "scheduler": "none", "workers": workers}
    settings, _, _ = parse_arguments(arguments(teacher, write_text(folder), folder / "out", "hungry", **changes))
    target = resolve_target(settings)
    with ray_session(settings) as machine:
        plan = make_plan(settings, target, machine)
        plan.folder.mkdir(parents=True)
        study = SearchStudy(
            plan.storage, "hungry", target.space, target.feasible, sampler="random", seed=0, identity={}
        )
        try:
            with open_workers(plan.resources) as opened:
                run_trials(plan, study, opened, lambda _: None, task)
        finally:
            records = study.records()
    return plan, records


@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_goes_on_after_its_worker_was_ended(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    _, records = searched(tiny_teacher_folder, tmp_path, monkeypatch, hungry(tmp_path, times=1), workers)
    assert [one.state for one in records] == ["COMPLETE"] * 3
    assert len({one.architecture for one in records}) == 3
    asked = (tmp_path / "asked").read_text().splitlines()
    assert 4 <= len(asked) <= 3 + workers  # what ran beside the hungry one is tried again too


def test_a_machine_that_is_too_small_is_an_input_error_that_says_what_to_do(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"--workers 1: Ray ended workers for lack of memory 3 times; give fewer"):
        searched(tiny_teacher_folder, tmp_path, monkeypatch, hungry(tmp_path, times=99))
    attempts = WORKER_DEATHS + 1  # of a worker, and of Tune, whose process may have to go first
    assert 1 + attempts <= len((tmp_path / "asked").read_text().splitlines()) <= 1 + attempts**2
