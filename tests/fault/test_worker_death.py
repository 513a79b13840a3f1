"""Two nodes share a search; a worker that is killed, and a node that goes away, cost a trial no result."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from ray._private.state import actors
from ray.cluster_utils import Cluster
from small_search import arguments, write_text

from nas.cluster.session import ray_session
from nas.planning.machine import Resources
from nas.planning.plan import make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.planning.specs import trial_spec
from nas.running.client import TOKENS, WORKER
from nas.running.task_lists import FinalUpdate, run_finals
from nas.running.tune_run import run_trials
from nas.running.tune_search import StudyScheduler
from nas.running.workers import open_workers
from nas.stages.prepare import open_study, prepare_teacher
from nas.study.records import TrialRecord
from trials.distill.checkpoint import Rung
from trials.final import FinalResult, FinalSpec, run_final
from trials.trial import TrialSpec, run_trial

HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # addresses of their own, so that results tell the nodes apart
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
QUIET = {"include_dashboard": False, "dashboard_agent_listen_port": 0}  # its usual port may be taken by another Ray
SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}  # a lost node is missed after seconds
TRIAL = 16_384  # tokens
FIRST_RUNG = TRIAL // 4

Result = dict[str, Any]
decide = StudyScheduler.on_trial_result
OnResult = Callable[[Result], None]


@dataclass
class Search:
    """What one search left: its records and specifications, and the results as they came from the workers."""

    records: list[TrialRecord]
    specs: list[TrialSpec]
    results: list[Result] = field(default_factory=list)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with one CPU each."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="ray") as folder:
        patch.setenv("RAY_TMPDIR", folder)  # sockets need short paths, and no other Ray is to take this one for its own
        patch.setenv("RAY_AUTH_MODE", "disabled")  # on loopback, for as long as this file takes
        head = {
            "node_ip_address": HEAD,
            "include_dashboard": False,
            "dashboard_agent_listen_port": 0,
            "_system_config": SOON,
        }
        made = Cluster(initialize_head=True, head_node_args={**NODE, **head})
        made.add_node(**NODE, node_ip_address=OTHER)
        made.wait_for_nodes()
        yield made
        made.shutdown()


def search(address: str, teacher: Path, folder: Path, on_result: OnResult, **changes: Any) -> Search:
    """Run a search on the cluster at `address`; `on_result` gets every result before its worker may go on."""
    results: list[Result] = []

    def listen(scheduler: StudyScheduler, tune_controller: Any, trial: Any, result: Result) -> str:
        if not results:
            wait_for_workers(2)
        results.append(result)
        on_result(result)
        return decide(scheduler, tune_controller, trial, result)

    common = {"address": address, "scheduler": "none", "tokens_per_trial": TRIAL}
    flags = arguments(teacher, write_text(folder), folder / "out", "shared", **common, **changes)
    settings, _, _ = parse_arguments(flags)
    with pytest.MonkeyPatch.context() as patch, ray_session(settings) as machine:
        patch.setattr(StudyScheduler, "on_trial_result", listen)
        plan = make_plan(settings, resolve_target(settings), machine)
        with open_workers(plan.resources, str(plan.output), machine) as workers:
            study = open_study(plan, prepare_teacher(plan, workers, print).preparation)
            run_trials(plan, study, workers, lambda number: None)
    specs = [trial_spec(plan, one.architecture) for one in study.records()]
    return Search(study.records(), specs, results)


def wait_for_workers(count: int) -> None:
    """Wait until as many nodes have a worker that is ready: a quick one is not to finish the trials of all."""
    for _ in range(600):
        workers = [one for one in actors().values() if one["ActorClassName"] == "Worker"]
        ready = {one["Address"]["NodeID"] for one in workers if one["State"] == "ALIVE"}
        if len(ready) == count:
            return
        time.sleep(0.2)
    pytest.fail(f"only {len(ready)} of {count} nodes have a worker")


def curve_of(spec: TrialSpec, directory: Path) -> tuple[tuple[int, float], ...]:
    """The losses of the same trial when nothing happens to it, trained here, in one thread."""
    undisturbed = TrialSpec(spec.recipe, spec.architecture, str(directory), spec.cache)
    return run_trial(undisturbed, lambda tokens, metrics: None).curve


@pytest.fixture(scope="module")
def wounded(cluster: Cluster, tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search on both nodes; one worker is killed right after the first rung of its trial."""
    killed: list[int] = []

    def kill_once(result: Result) -> None:
        if result.get(TOKENS) == FIRST_RUNG and not killed:
            killed.append(place_of(result)[1])
            os.kill(killed[0], signal.SIGKILL)

    done = search(cluster.address, tiny_teacher_folder, tmp_path_factory.mktemp("wounded"), kill_once, trials=4)
    assert killed
    return done


def test_two_nodes_share_one_search(wounded: Search) -> None:
    # Two at a time, one CPU each: whatever the pace of the nodes, the first two trials start on different ones.
    assert {place_of(one)[0] for one in wounded.results if WORKER in one} == {HEAD, OTHER}


def test_each_architecture_is_tried_once(wounded: Search) -> None:
    assert [one.state for one in wounded.records] == ["COMPLETE"] * 4
    assert len({one.architecture for one in wounded.records}) == 4


def test_killed_worker_costs_nothing_but_time(wounded: Search, tmp_path: Path) -> None:
    assert sorted(one.metrics["resumed_from"] for one in wounded.records) == [0, 0, 0, FIRST_RUNG]
    for record, spec in zip(wounded.records, wounded.specs, strict=True):
        if record.metrics["resumed_from"]:
            assert record.curve == curve_of(spec, tmp_path)


def test_killed_worker_of_a_final_costs_nothing_but_time(cluster: Cluster, wounded: Search, tmp_path: Path) -> None:
    """The finals of two trials, one after the other; the worker of the first is killed half way."""
    more = 4 * TRIAL  # the second half takes longer than it takes to hear of the first
    specs = {spec.architecture.key: FinalSpec(spec, more, str(tmp_path / str(number))) for number, spec in two(wounded)}
    updates: dict[str, list[FinalUpdate]] = {name: [] for name in specs}
    killed: list[str] = []

    def kill_once(name: str, one: FinalUpdate) -> None:
        updates[name].append(one)
        if isinstance(one, Rung) and one.tokens == TRIAL + more // 2 and not killed:
            alive = [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
            (worker,) = (one for one in alive if "ray::Worker" in "".join(one.cmdline()[:1]))
            worker.kill()
            killed.append(name)

    settings, _, _ = parse_arguments(["--budget", "60%", "--address", cluster.address])
    one = Resources(workers=1, cpus=1, gpus=0, given=True)
    with ray_session(settings) as machine, open_workers(one, str(tmp_path), machine) as workers:
        run_finals(specs, workers, kill_once)
    assert killed == list(specs)[:1]
    for name in specs:
        (result,) = (one for one in updates[name] if isinstance(one, FinalResult))
        assert result.resumed_from == (more // 2 if name in killed else 0)
        readings = [(one.tokens, one.metrics["val_loss"]) for one in updates[name] if isinstance(one, Rung)]
        assert tuple(readings) == result.curve  # each once, in order
    spec = specs[killed[0]]
    undisturbed = run_final(replace(spec, directory=str(tmp_path / "undisturbed")), lambda *_: None)
    (result,) = (one for one in updates[killed[0]] if isinstance(one, FinalResult))
    assert (result.curve, result.windows) == (undisturbed.curve, undisturbed.windows)


def test_killed_client_costs_nothing_but_time(cluster: Cluster, tiny_teacher_folder: Path, tmp_path: Path) -> None:
    """The process of Tune that waits for a trial dies: the next one takes the worker over from it."""
    killed: list[int] = []

    def kill_once(result: Result) -> None:
        if result.get(TOKENS) == FIRST_RUNG and not killed:
            killed.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)

    done = search(cluster.address, tiny_teacher_folder, tmp_path, kill_once, trials=2)
    assert killed
    assert [one.state for one in done.records] == ["COMPLETE"] * 2
    assert sorted(one.metrics["resumed_from"] for one in done.records) == [0, FIRST_RUNG]
    for record, spec in zip(done.records, done.specs, strict=True):
        assert record.curve == curve_of(spec, tmp_path / record.architecture.key)


def place_of(result: Result) -> tuple[str, int]:
    """Address of the node and process id of the worker that said ``result``."""
    address, _, process = result[WORKER].rpartition(":")
    return address, int(process)


def two(done: Search) -> list[tuple[int, TrialSpec]]:
    return list(enumerate(done.specs[:2]))


def test_lost_node_costs_nothing_but_time(cluster: Cluster, tiny_teacher_folder: Path, tmp_path: Path) -> None:
    lost: list[str] = []

    def lose_once(result: Result) -> None:
        if result.get(TOKENS) == FIRST_RUNG and place_of(result)[0] == OTHER and not lost:
            lost.append(OTHER)
            (node,) = cluster.worker_nodes
            cluster.remove_node(node, allow_graceful=False)
            psutil.wait_procs([psutil.Process(place_of(result)[1])], timeout=60)  # it outlives its node for a moment

    done = search(cluster.address, tiny_teacher_folder, tmp_path, lose_once, trials=2)
    assert lost
    assert [one.state for one in done.records] == ["COMPLETE"] * 2
    undisturbed, resumed = sorted(one.metrics["resumed_from"] for one in done.records)
    assert undisturbed == 0
    assert resumed == FIRST_RUNG
    for record, spec in zip(done.records, done.specs, strict=True):
        assert record.curve == curve_of(spec, tmp_path / record.architecture.key)
