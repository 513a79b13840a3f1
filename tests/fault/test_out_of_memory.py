"""Too little memory: a step takes fewer windows at a time, then the trial fails, and no other trial is touched."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from bounded import run_bounded
from conftest import make_gpt2
from ray import cloudpickle
from small_search import ROOT, arguments, clean_environment, write_text
from transformers import PreTrainedTokenizerFast

from nas.cluster.session import ray_session
from nas.planning.plan import make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.running.tasks import trial_task
from nas.running.tune_run import run_trials
from nas.running.workers import open_workers
from nas.stages.prepare import open_study, prepare_teacher
from nas.study.records import TrialRecord
from trials.losses.precision import training_precision

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

PROGRAM = Path(__file__).with_name("limited_memory.py")
REDUCED = "out of memory: micro-batches are reduced to {} windows"
ROUNDING = 1e-4 if training_precision("cpu")[0] is torch.float32 else 2e-3
# Memory that is freed goes back at once. By default the heap keeps some, and how much depends on threads.
NO_HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """What distillations in one process came to, see limited_memory.py. Four windows need 200 MB, one needs 70."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = run_bounded([sys.executable, PROGRAM, "140", "50"], env=clean_environment(PYTHONPATH=path, **NO_HEAP))
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_step_takes_fewer_windows_at_a_time_and_the_losses_stay(trained: dict[str, Any]) -> None:
    free, limited = trained["free"], trained["limited"]["140"]
    assert limited["halved"][0] == REDUCED.format(2)
    assert limited["losses"] == pytest.approx(free["losses"], rel=ROUNDING)
    assert limited["kl"] == pytest.approx(free["kl"], rel=ROUNDING)
    assert limited["kl"] != free["kl"]  # another order of summation, so the windows did go through in groups


def test_memory_that_does_not_do_for_one_window_fails_and_leaves_the_process_whole(trained: dict[str, Any]) -> None:
    limited = trained["limited"]["50"]
    assert limited["halved"] == [REDUCED.format(2), REDUCED.format(1)]
    assert limited["error"].startswith("a training step on one window of 4096 tokens: ")
    assert trained["again"] == trained["free"]


def starved(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The real trial. Its process has 32 MB left for the second architecture that asks, which needs more."""
    asked = Path(spec["directory"]).parent / "asked"
    asked.parent.mkdir(exist_ok=True)
    with asked.open("a") as file:
        file.write("x")
    if len(asked.read_text()) != 2:
        yield from trial_task(spec)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = rest_of_the_heap(hard)
    try:
        yield from trial_task(spec)
    finally:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def rest_of_the_heap(hard: int) -> list[torch.Tensor]:
    """All blocks of a MB that are free in this process. From now on it may grow by 32 MB, for Ray and its threads."""
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms, hard))
    taken: list[torch.Tensor] = []
    try:
        while True:
            taken.append(torch.empty(2**20, dtype=torch.uint8))
    except RuntimeError:
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**25, hard))
        return taken


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A teacher of 4M parameters: a student's optimizer alone needs more than what is left."""
    folder = tmp_path_factory.mktemp("teacher")
    make_gpt2(n_embd=256, n_inner=2048).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def records(teacher: Path, folder: Path, task: Any) -> list[TrialRecord]:
    """The trials of a search with one worker."""
    changes = {"trials": 3, "scheduler": "none", "workers": 1, "sampler": "random"}
    settings, _, _ = parse_arguments(arguments(teacher, write_text(folder), folder / "out", "hungry", **changes))
    with ray_session(settings) as machine:
        plan = make_plan(settings, resolve_target(settings), machine)
        plan.folder.mkdir(parents=True)
        with open_workers(plan.resources, str(plan.output), machine) as workers:
            study = open_study(plan, prepare_teacher(plan, workers, lambda _: None).preparation)
            run_trials(plan, study, workers, lambda number: None, task)
    return study.records()


@pytest.mark.fault_slow
def test_a_trial_without_memory_fails_and_the_others_are_as_they_would_be(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
    for name in ("hungry", "fed"):
        (tmp_path / name).mkdir()
    hungry = records(teacher, tmp_path / "hungry", starved)
    fed = records(teacher, tmp_path / "fed", trial_task)
    assert [one.state for one in hungry] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert str(hungry[1].reason).startswith("OutOfMemory: ")
    assert [one.architecture for one in hungry] == [one.architecture for one in fed]
    assert [one.curve for one in hungry if one.state == "COMPLETE"] == [fed[0].curve, fed[2].curve]
