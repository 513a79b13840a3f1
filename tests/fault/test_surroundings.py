"""What the surroundings do to a trial is no verdict on its architecture; what its own faults do is not repeated."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from free_workers import FreeWorkers
from ray import cloudpickle
from ray.air.execution._internal import RayActorManager
from ray.tune.search import Searcher
from small_search import arguments, write_text

from nas.cluster.session import ray_session
from nas.planning.errors import ALIKE, PAUSES, AlikeFailures, Failure, NothingFeasibleError
from nas.planning.machine import Machine, Node, Resources
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.running import tune_run, tune_search
from nas.running.client import AGAIN, FAILURE, FINAL, LOSS, TOKENS
from nas.running.jobs import Task
from nas.running.tune_run import run_trials
from nas.running.tune_search import StudyScheduler, StudySearcher
from nas.running.worker import About, Worker
from nas.running.workers import Workers, open_workers
from nas.stages import measure, prepare
from nas.study.study import SearchStudy
from nas.study.trial_records import SCREENED
from search_spaces.errors import InputError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

Result = dict[str, Any]
decide = StudyScheduler.on_trial_result
DONE = {FINAL: True, TOKENS: 4096, LOSS: 4.0}


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune forgets trials at once, as it does in a search of hundreds."""
    monkeypatch.setattr(tune_search, "KEPT_ENDED", 1)


@pytest.fixture(scope="module")
def plan(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("surroundings")
    changes = {"trials": 6, "sampler": "random", "scheduler": "none", "workers": 1}
    flags = arguments(tiny_teacher_folder, write_text(folder), folder / "out", "s", **changes)
    settings, _, _ = parse_arguments(flags)
    plan = make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))
    plan.folder.mkdir(parents=True)
    return plan


@pytest.fixture(scope="module")
def opened(plan: Plan) -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
        with (
            ray_session(plan.settings) as machine,
            open_workers(plan.resources, str(plan.output), machine) as workers,
        ):
            yield workers


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_run, "PAUSES", (0.0,) * len(PAUSES))


def make_study(plan: Plan, name: str) -> SearchStudy:
    space, feasible = plan.target.space, plan.target.feasible
    return SearchStudy(plan.storage, name, space, feasible, sampler="random", seed=0, identity={})


def quick(spec: Result) -> Iterator[Result]:
    yield {TOKENS: 0, LOSS: 5.0}
    yield DONE


def killing(monkeypatch: pytest.MonkeyPatch, chosen: Callable[[str, int], bool]) -> list[str]:
    """Kill the Tune process of every trial at its first result that ``chosen(architecture, kills so far)`` names."""
    killed: list[str] = []

    def listen(scheduler: StudyScheduler, tune_controller: Any, trial: Any, result: Result) -> str:
        key = str(trial.config["spec"]["architecture"])
        if result.get(TOKENS) == 0 and chosen(key, len(killed)):
            killed.append(key)
            os.kill(result["pid"], signal.SIGKILL)
        return decide(scheduler, tune_controller, trial, result)

    monkeypatch.setattr(StudyScheduler, "on_trial_result", listen)
    return killed


def test_a_trial_whose_process_dies_three_times_is_complete_in_the_end(
    plan: Plan,
    opened: Workers,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the memory monitor of Ray does it while a neighbour takes the memory for some seconds."""
    study = make_study(plan, "three")
    killed = killing(monkeypatch, lambda key, kills: kills < len(PAUSES))
    run_trials(plan, study, opened, lambda number: None, quick)
    assert len(killed) == len(PAUSES)
    assert len(set(killed)) == 1
    assert [one.state for one in study.records()] == ["COMPLETE"] * plan.trials
    assert len({one.architecture for one in study.records()}) == plan.trials
    assert caplog.text.count("its process died; try ") == len(PAUSES)
    assert "Traceback" not in "".join(capfd.readouterr())


class Idle(Worker):
    """A worker that imports nothing."""

    def free(self) -> About:
        return About(ray.get_runtime_context().get_node_id(), "here", os.getpid(), "CPU, float32", "CPU", True)


def test_a_trial_waits_for_the_process_that_starts_for_it(
    plan: Plan, opened: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune would end it as soon as another trial leaves a process, and start one for the next trial, on and on."""
    asked: list[Any] = []
    add = RayActorManager.add_actor
    monkeypatch.setattr(RayActorManager, "add_actor", lambda self, **given: asked.append(given) or add(self, **given))
    many = replace(plan, settings=plan.settings.model_copy(update={"trials": 24}))
    with closing(Workers(Resources(4, 0, 0, given=True), worker=Idle)) as workers:
        run_trials(many, study := make_study(plan, "many"), workers, lambda number: None, quick)
    assert [one.state for one in study.records()] == ["COMPLETE"] * 24
    assert len(asked) == 4


def test_a_trial_whose_process_always_dies_is_tried_again_by_the_next_run(
    plan: Plan, opened: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(plan, "always")
    killed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        killed = killing(patch, lambda key, kills: not killed or key == killed[0])
        run_trials(plan, study, opened, lambda number: None, quick)
    (failed,) = [one for one in study.records() if one.state == "FAIL"]
    assert len(killed) == len(PAUSES) + 1
    assert str(failed.reason).startswith("its process died in every try (last problem: ")
    assert str(failed.reason).endswith("; the same command tries it again")
    assert study.tries_again(failed.number)
    assert study.finished() == plan.trials - 1

    again = make_study(plan, "always")  # by the next run of the command
    assert again.requeue(failed=True) == 1
    assert again.requeue(failed=True) == 0
    assert [one.state for one in again.records()] == ["COMPLETE"] * (plan.trials - 1)
    run_trials(plan, again, opened, lambda number: None, quick)
    assert [one.state for one in again.records()] == ["COMPLETE"] * plan.trials
    assert failed.architecture == again.records()[-1].architecture
    assert again.finished() == plan.trials
    assert again.requeue(failed=True) == 0


def broken(folder: Path, ends: list[str]) -> Task:
    """A trial that fails as ``ends`` say, one after the other; an empty text is a success."""

    def task(spec: Result) -> Iterator[Result]:
        with (folder / "begun").open("a") as begun:
            begun.write("x")
        end = ends[len((folder / "begun").read_text()) - 1]
        if end:
            raise ValueError(end)
        yield DONE

    return task


def test_a_search_whose_first_trials_fail_alike_stops_after_three(plan: Plan, opened: Workers, tmp_path: Path) -> None:
    task = broken(tmp_path, [f"shape {number} does not fit" for number in range(6)])
    with pytest.raises(
        NothingFeasibleError, match=r"3 trials failed for the same reason.*ValueError: shape \d does not"
    ):
        run_trials(plan, make_study(plan, "alike"), opened, lambda number: None, task)
    assert (tmp_path / "begun").read_text() == "x" * ALIKE


@pytest.mark.parametrize("ends", [["", "a", "a", "a", "a", ""], ["a", "b", "a", "b", "", "a"]])
def test_a_search_with_a_success_or_with_different_failures_goes_on(
    plan: Plan, opened: Workers, tmp_path: Path, ends: list[str]
) -> None:
    study = make_study(plan, "".join(one or "-" for one in ends))
    run_trials(plan, study, opened, lambda number: None, broken(tmp_path, ends))
    assert [one.state for one in study.records()] == ["FAIL" if one else "COMPLETE" for one in ends]


def searcher(plan: Plan, name: str, left: int = 9, pauses: tuple[float, ...] = ()) -> StudySearcher:
    return StudySearcher(make_study(plan, name), lambda _: {}, lambda _: None, FreeWorkers(), left=left, pauses=pauses)


def test_nothing_starts_in_a_pause_and_the_end_waits_for_whoever_may_come_again(plan: Plan) -> None:
    one = searcher(plan, "pause", left=2, pauses=(1e9,))
    assert isinstance(one.suggest("a"), dict)
    assert isinstance(one.suggest("b"), dict)
    assert one.suggest("c") is None  # all are asked for, and one may come again
    one.on_trial_complete("a", error=True)
    assert one.suggest("c") is None  # in the pause
    one.on_trial_complete("b", DONE)
    assert one.suggest("c") is None
    assert one.workers.wanted == 1
    one._again = [(0.0, candidate) for _, candidate in one._again]
    assert isinstance(one.suggest("c"), dict)
    one.on_trial_complete("c", DONE)
    assert one.suggest("d") == Searcher.FINISHED
    assert (one.workers.wanted, one.workers.lent) == (0, [])
    assert [one.state for one in one.study.records()] == ["COMPLETE"] * 2


def test_surroundings_that_always_fail_end_the_search_and_a_success_lets_it_go_on(plan: Plan) -> None:
    one = searcher(plan, "surroundings")
    full = {FAILURE: "OSError: the disk of /out has 0 bytes free", AGAIN: True}
    for number in range(2 * ALIKE - 1):
        assert isinstance(one.suggest(f"{number}"), dict)
        one.on_trial_complete(f"{number}", DONE if number == ALIKE - 1 else full)
    assert one.problem is None
    assert isinstance(one.suggest("last"), dict)
    one.on_trial_complete("last", full)
    assert isinstance(one.problem, InputError)
    assert "failed by their surroundings, each 4 times: OSError: the disk of /out has 0 bytes free" in str(one.problem)
    assert one.suggest("next") == Searcher.FINISHED


def test_a_search_without_workers_ends_and_leaves_its_trial_open(plan: Plan) -> None:
    one = searcher(plan, "nobody")
    one.pauses = (0.0,)
    one.suggest("a")
    one.on_trial_complete("a", {FAILURE: "the worker died", AGAIN: True})
    one.workers.problem = "a worker cannot import what trials need"
    assert one.suggest("b") == Searcher.FINISHED
    assert str(one.problem) == "a worker cannot import what trials need"
    assert isinstance(one.problem, InputError)
    assert [one.state for one in one.study.records()] == ["RUNNING"]


def test_reasons_that_differ_in_numbers_are_alike() -> None:
    alike = AlikeFailures()
    for reason in ("step 3: nan", "lease 0a0000009243d174b6aeb518e71028d6", "step 17: nan", "step 1: nan"):
        assert alike.reason == ""
        alike.failed(reason)
    assert alike.reason == "step 1: nan"
    alike.succeeded()
    assert alike.reason == ""


@pytest.mark.parametrize(
    ("retry", "error"), [(False, NothingFeasibleError), (True, InputError)], ids=["own faults", "surroundings"]
)
def test_measurements_that_all_fail_alike_stop_after_three(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, retry: bool, error: type[Exception]
) -> None:
    begun: list[str] = []

    def run(specs: Mapping[str, Any], workers: Workers, on_result: Callable[..., None]) -> None:
        for key in specs:
            begun.append(key)
            on_result(key, Failure("OSError: no such share", retry))

    monkeypatch.setitem(measure.RUNS, SCREENED, run)
    study, feasible = make_study(plan, f"measured {retry}"), plan.target.feasible
    workers = Workers(plan.resources)
    with pytest.raises(error, match="OSError: no such share"):
        measure.measure(SCREENED, plan, study, workers, lambda _: None, lambda _: feasible, len(feasible))
    assert len(begun) == ALIKE


def test_a_teacher_that_the_surroundings_keep_from_being_prepared_is_one_line(plan: Plan) -> None:
    error = prepare._error(Failure("OSError: the disk of /out has 0 bytes free", retry=True), Workers(plan.resources))
    assert isinstance(error, InputError)
    assert "the teacher could not be prepared: OSError: the disk of /out has 0 bytes free" in str(error)
    fault = ValueError("a bug")
    assert prepare._error(Failure("ValueError: a bug", retry=False, error=fault), Workers(plan.resources)) is fault
