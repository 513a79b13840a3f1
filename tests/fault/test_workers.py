"""The workers of a search, on a real Ray: they are kept, lent to one task each, and replaced when they die or hang."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, OutOfMemoryError

from nas.cluster.nodes import unplaceable
from nas.cluster.session import ray_session
from nas.planning import errors
from nas.planning.errors import PAUSES, TRIES, Failure, NoWorkerError
from nas.planning.machine import Node, Resources
from nas.planning.settings import parse_arguments
from nas.running import jobs, task_lists
from nas.running import slot as slots
from nas.running.jobs import Job, Retried, Started, Task, results_of
from nas.running.slot import Slot
from nas.running.tasks import generated
from nas.running.worker import About, Worker
from nas.running.workers import Pace, Workers
from search_spaces.errors import InputError
from trials.storage.disk import mount_of

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

PATIENCE = 120  # seconds; a bound for what would hang, on however slow a machine
NOTHING = Resources(workers=1, cpus=0, gpus=0)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between the tries of a task."""
    monkeypatch.setattr(jobs, "PAUSES", (0.0,) * len(PAUSES))


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    settings, _, _ = parse_arguments(["--budget", "60%"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
        with ray_session(settings):
            yield


class Quick(Worker):
    """A worker that imports nothing."""

    kind = "CPU, float32"

    def free(self) -> About:
        if self._results is not None:
            self._results.close()
        self._name, self._results = "", None
        return About(ray.get_runtime_context().get_node_id(), "here", os.getpid(), self.kind, "CPU", True)


class Impatient(Pace):
    """Without pauses at first. Later a long one: a machine that starts processes without end does nothing else."""

    def pause(self, failures: int) -> float:
        return 0.0 if failures < TRIES + 4 else PATIENCE


# An answer takes up to 10 ms of a processor, so a worker that is asked five times a second is not quite idle.
IMPATIENT = Impatient(look=0.1, beat=0.2, hung_after=1.0, idle=0.1)


def opened(count: int = 1, kind: type[Worker] = Quick, pace: Pace | None = None, **options: Any) -> Workers:
    resources = Resources(**{"workers": count, "cpus": 0, "gpus": 0, "given": True, **options})
    made = Workers(resources, pace=pace or Impatient(look=0.1), worker=kind)
    made.want(count)
    return made


@pytest.fixture(scope="module")
def one(session: None) -> Iterator[Workers]:
    """A single worker, which must be free again after every test."""
    with closing(opened()) as workers:
        yield workers


def until(condition: Callable[[], bool], workers: Workers | None = None) -> None:
    """Wait until ``condition`` holds, while ``workers`` are looked after."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
        if workers is not None:
            workers.poll()


def taken(workers: Workers, task: str = "task") -> Slot:
    until(workers.has_free)
    slot = workers.take(task)
    assert slot is not None
    return slot


def run(
    workers: Workers,
    task: Task,
    argument: Any = None,
    notes: list[str] | None = None,
    stop: int = 99,
    folder: str = "",
) -> list[Any]:
    """The results of ``task``; after ``stop`` of them nobody asks for more."""
    results: list[Any] = []
    with closing(results_of(workers, {"task": Job(cloudpickle.dumps(task), argument, folder)})) as happened:
        for _, result in happened:
            if isinstance(result, Retried):
                (notes if notes is not None else []).append(result.reason)
            elif not isinstance(result, Started):
                results.append(result)
            if len(results) == stop:
                break
    return results


def dying(file: str, times: int) -> Task:
    """Yields where it is, and takes its process with it the first ``times`` that it is asked for more."""

    def task(_: Any) -> Iterator[int]:
        yield os.getpid()
        with open(file, "a") as deaths:
            deaths.write("x")
        if len(Path(file).read_text()) <= times:
            os._exit(1)
        yield -1

    return task


def raising(file: str, error: Exception, times: int) -> Task:
    def task(_: Any) -> Iterator[str]:
        with open(file, "a") as attempts:
            attempts.write("x")
        if len(Path(file).read_text()) <= times:
            raise error
        yield "done"

    return task


def where(_: Any) -> Iterator[int]:
    yield os.getpid()


def test_the_next_task_finds_the_process_of_the_last(one: Workers) -> None:
    first, second = run(one, where), run(one, where)
    assert first == second
    assert isinstance(first[0], int)


def test_a_worker_that_dies_is_replaced_and_its_task_done_again(one: Workers, tmp_path: Path) -> None:
    notes: list[str] = []
    first, second, last = run(one, dying(str(tmp_path / "deaths"), 1), notes=notes)
    assert (first != second, last) == (True, -1)
    assert len(notes) == 1
    assert "the worker died" in notes[0]
    assert run(one, where) == [second]


def test_a_task_that_takes_every_worker_with_it_is_given_up(one: Workers, tmp_path: Path) -> None:
    *processes, last = run(one, dying(str(tmp_path / "deaths"), 99))
    assert len(set(processes)) == TRIES
    assert isinstance(last, Failure)
    assert (last.retry, last.memory) == (True, False)
    assert run(one, where)[0] not in processes


def test_surroundings_are_tried_again_and_faults_of_its_own_are_not(one: Workers, tmp_path: Path) -> None:
    notes: list[str] = []
    assert run(one, raising(str(tmp_path / "disk"), OSError("disk full"), 2), notes=notes) == ["done"]
    assert notes == ["OSError: disk full"] * 2
    (fault,) = run(one, raising(str(tmp_path / "fault"), ValueError("a fault"), 1))
    assert (fault.reason, fault.retry) == ("ValueError: a fault", False)
    with pytest.raises(InputError, match="no such text"):
        run(one, raising(str(tmp_path / "input"), InputError("no such text"), 1))


def test_what_nobody_asks_for_any_more_is_ended_where_it_stands(one: Workers, tmp_path: Path) -> None:
    file = tmp_path / "file"

    def task(_: Any) -> Iterator[int]:
        def do(emit: Callable[[int], None]) -> None:
            try:
                for number in range(5):
                    emit(number)
                    file.write_text(f"went on after {number}")
            finally:
                file.write_text(file.read_text() + ", ended")

        return generated(do)

    assert run(one, task, stop=3) == [0, 1, 2]
    run(one, where)  # the worker is free only when that has ended
    assert file.read_text() == "went on after 1, ended"


def test_a_worker_is_lent_to_one_task_and_comes_back(one: Workers) -> None:
    slot = taken(one, "trial 7")
    assert one.take("trial 8") is None
    one.give(slot)
    one.give(slot)  # a second time means nothing
    one.give(taken(one, "trial 8"))


def test_a_worker_that_was_given_to_another_task_says_so_to_the_first(one: Workers) -> None:
    slot = taken(one, "first")
    begun = slot.worker.begin.remote("first", cloudpickle.dumps(where), None, "")
    process = ray.get(begun)
    one.give(slot)
    other = taken(one, "second")
    assert other.about is not None
    assert other.about.process == process
    with pytest.raises(OSError, match="the worker of first was given to another task"):
        ray.get(slot.worker.more.remote("first"))
    one.give(other)


def test_there_are_as_many_workers_as_tasks(session: None) -> None:
    with closing(opened(3, pace=Impatient(look=0.1, keep=0.0))) as workers:
        until(lambda: workers.ready == 3, workers)
        slot = taken(workers)
        workers.want(1)
        until(lambda: workers.count == 1, workers)
        assert slot.worker is not None, "the one that has a task stays"
        workers.want(2)
        until(lambda: workers.ready == 2, workers)


def test_a_worker_stays_for_a_while_when_there_is_nothing_to_do(session: None) -> None:
    with closing(opened(2, pace=Impatient(look=0.1, keep=PATIENCE))) as workers:
        until(lambda: workers.ready == 2, workers)
        workers.want(1)
        for _ in range(20):
            workers.poll()
        assert workers.ready == 2


def test_there_are_no_more_workers_than_nodes_have_room_for(session: None) -> None:
    with closing(opened(1, given=False, cpus=1)) as workers:
        workers.want(500)
        fit = int(ray.cluster_resources()["CPU"])
        until(lambda: workers.ready == fit, workers)
        assert workers.count == fit


def test_a_worker_without_a_place_is_what_an_autoscaler_sees(session: None) -> None:
    """Where no autoscaler says what it can bring, one worker more than fits waits in Ray."""
    workers = Workers(Resources(1, 1, 0), grows=True, pace=Impatient(look=0.1, keep=0.0), worker=Quick)
    with closing(workers):
        workers.want(500)
        fit = int(ray.cluster_resources()["CPU"])
        until(lambda: workers.ready == fit, workers)
        assert workers.count == fit + 1
        workers.want(1)
        assert workers.count == 1


class Other(Quick):
    """Every second worker computes otherwise than the first."""

    def __init__(self, device: str, output: str) -> None:
        super().__init__(device, output)
        self.kind = Path(output).read_text()


def test_a_worker_with_another_arithmetic_is_refused_by_name(
    session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = tmp_path / "kind"
    kind.write_text("CPU, bfloat16")
    workers = Workers(NOTHING, str(kind), pace=Impatient(look=0.1), worker=Other)
    with closing(workers):
        workers.want(1)
        until(lambda: workers.ready == 1, workers)
        kind.write_text("CPU, float32")
        workers.resources = Resources(2, 0, 0, given=True)
        workers.want(2)
        with caplog.at_level(logging.WARNING):
            until(lambda: bool(caplog.records), workers)
    assert "it computes in CPU, float32, and this search in CPU, bfloat16; losses would differ" in caplog.text


class Blind(Quick):
    """A worker on a node without the shared folder."""

    def free(self) -> About:
        return super().free()._replace(sees=False)


def test_a_node_without_the_output_folder_gets_no_workers(session: None, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        closing(opened(kind=Blind)) as workers,
        pytest.raises(NoWorkerError, match="does not see --output"),
    ):
        run(workers, where)
    assert "does not see --output /; on a cluster, give a folder that all nodes share" in caplog.text


def hang(_: Any) -> Iterator[int]:
    yield os.getpid()
    threading.Event().wait()


def stand_still(_: Any) -> Iterator[int]:
    yield os.getpid()
    os.kill(os.getpid(), signal.SIGSTOP)  # other threads stop a moment later
    threading.Event().wait()


@pytest.mark.parametrize("task", [hang, stand_still])
def test_a_worker_that_hangs_is_replaced_and_its_task_tried_again(session: None, task: Task) -> None:
    notes: list[str] = []
    with closing(opened(pace=IMPATIENT)) as workers:
        *processes, last = run(workers, task, notes=notes)
        assert len(set(processes)) == len(processes) == TRIES
        assert isinstance(last, Failure)
        assert last.reason == "the worker died: it hung: no answer and no work for 1 s"
        assert notes == [last.reason] * (TRIES - 1)
        assert isinstance(run(workers, where)[0], int)
    until(lambda: not any(psutil.pid_exists(one) and not _is_zombie(one) for one in processes))


@pytest.mark.parametrize("seconds", [0.1, 8.0, 600.0])
def test_a_worker_is_asked_several_times_before_it_counts_as_hung(seconds: float) -> None:
    assert Pace(hung_after=seconds).beat <= seconds / 4


def _is_zombie(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_worker_that_is_preempted_costs_a_try(session: None) -> None:
    """A cloud tells a machine that it ends, and ends it two seconds later."""
    notes: list[str] = []
    with closing(opened()) as workers:
        job = Job(cloudpickle.dumps(wait_for_end), None)
        with closing(results_of(workers, {"task": job})) as happened:
            first = next(one for _, one in happened if isinstance(one, int))
            os.kill(first, signal.SIGTERM)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and not _is_zombie(first):
                time.sleep(0.05)
            if not _is_zombie(first):
                os.kill(first, signal.SIGKILL)
            notes += [one.reason for _, one in [next(happened)] if isinstance(one, Retried)]
            second = next(one for _, one in happened if isinstance(one, int))
    assert second != first
    assert len(notes) == 1
    assert notes[0].startswith("the worker died")


def wait_for_end(_: Any) -> Iterator[int]:
    yield os.getpid()
    threading.Event().wait(PATIENCE)


def test_a_worker_that_works_long_does_not_hang(session: None) -> None:
    def work(_: Any) -> Iterator[int]:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            pass
        yield 1

    with closing(opened(pace=IMPATIENT)) as workers:
        assert run(workers, work) == [1]


def test_a_driver_that_was_busy_does_not_take_its_workers_for_hung(session: None) -> None:
    with closing(opened(pace=Impatient(look=0.1, beat=0.1, hung_after=0.5, idle=0.2))) as workers:
        slot = taken(workers)
        time.sleep(2)  # nobody asks for a pulse meanwhile
        workers.poll()
        assert not slot.hung
        workers.give(slot)


class Absent(Quick):
    """A worker whose process ends as soon as it has started. ``output`` is a file with a letter for each start."""

    times = 99

    def free(self) -> About:
        with open(self._output, "a") as starts:
            starts.write("x")
        if len(Path(self._output).read_text()) <= self.times:
            os._exit(1)
        return super().free()


class Recovering(Absent):
    """The same, in its first starts only."""

    times = TRIES + 2


class Abroad(Worker):
    """A worker on a node where the project is not installed."""

    def free(self) -> About:
        raise ModuleNotFoundError("No module named 'nas'")


class Unbuilt(Worker):
    """The same, noticed earlier."""

    def __init__(self, device: str, output: str) -> None:
        raise ModuleNotFoundError("No module named 'nas'")


def test_the_search_goes_on_without_a_worker_that_does_not_start(
    session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), closing(opened(kind=Quick)) as workers:
        until(lambda: workers.ready == 1, workers)
        workers.worker, workers.output = Absent, str(tmp_path / "starts")
        workers.resources = Resources(2, 0, 0, given=True)
        workers.want(2)
        until(lambda: bool(caplog.records), workers)
        assert "cannot be started" in caplog.text
        assert "(the search goes on with 1 of 2 workers)" in caplog.text
        assert len({run(workers, where)[0] for _ in range(4)}) == 1


def test_a_worker_that_did_not_start_is_tried_again_later(session: None, tmp_path: Path) -> None:
    """A place of a worker that dies at its start gets another one, as often as it takes."""
    with closing(opened()) as workers:
        until(lambda: workers.ready == 1, workers)
        workers.worker, workers.output = Recovering, str(tmp_path / "starts")
        workers.resources = Resources(2, 0, 0, given=True)
        workers.want(2)
        until(lambda: workers.ready == 2, workers)
        assert len((tmp_path / "starts").read_text()) > TRIES + 2


@pytest.mark.parametrize("kind", [Abroad, Unbuilt])
def test_what_cannot_be_imported_is_told_as_such(session: None, kind: type[Worker]) -> None:
    with (
        closing(opened(2, kind)) as workers,
        pytest.raises(NoWorkerError, match=r"cannot import .*ModuleNotFoundError: No module named 'nas'.*install"),
    ):
        run(workers, where)


def test_workers_that_do_not_start_are_told_as_such(session: None, tmp_path: Path) -> None:
    workers = Workers(NOTHING, str(tmp_path / "starts"), pace=Impatient(look=0.1), worker=Absent)
    with closing(workers), pytest.raises(NoWorkerError, match="a worker cannot be started") as raised:
        run(workers, where)
    assert "memory" not in str(raised.value).partition("Some common causes")[0]
    assert "\n" not in str(raised.value)


class Stuck(Quick):
    """A worker that hangs while it starts, as on a file system that does not answer."""

    def free(self) -> About:
        with open(self._output, "a") as starts:
            starts.write(f"{os.getpid()}\n")
        threading.Event().wait()
        return super().free()


def test_workers_that_hang_while_they_start_are_told_as_such(session: None, tmp_path: Path) -> None:
    workers = Workers(NOTHING, str(tmp_path / "starts"), pace=IMPATIENT, worker=Stuck)
    with (
        closing(workers),
        pytest.raises(NoWorkerError, match=r"hangs while it starts \(no answer and no work for 1 s\)"),
    ):
        run(workers, where)
    processes = {int(one) for one in (tmp_path / "starts").read_text().split()}
    assert len(processes) >= TRIES
    until(lambda: not any(psutil.pid_exists(one) and not _is_zombie(one) for one in processes))


def test_a_worker_that_waits_for_a_place_does_not_hang(session: None) -> None:
    everything = int(ray.cluster_resources()["CPU"])
    with closing(opened(2, pace=IMPATIENT, cpus=everything)) as workers:
        until(lambda: workers.ready == 1, workers)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 3 * IMPATIENT.hung_after, workers)
        assert [slot.failures for slot in workers._slots] == [0, 0]
        assert workers.ready == 1


def test_workers_that_no_node_can_have_are_told_as_such(session: None, caplog: pytest.LogCaptureFixture) -> None:
    pace, known = Impatient(look=0.1, patience=0.5), r"--cpus-per-trial 9999: no node has so many CPUs, the largest has"
    with (
        caplog.at_level(logging.WARNING),
        closing(opened(2, pace=pace, cpus=9999)) as workers,
        pytest.raises(NoWorkerError, match=known + r" \d+; give at most what a node has"),
    ):
        run(workers, where)
    assert "the search waits for such a node, for 0.5 s" in caplog.text


def test_a_node_can_have_a_worker_or_the_flag_is_named() -> None:
    nodes = [Node(4), Node(2, 1.0, kinds=("H100",))]
    assert unplaceable({"num_cpus": 4, "num_gpus": 0}, nodes) == ""
    assert unplaceable({"num_cpus": 2, "num_gpus": 0.5}, nodes) == ""
    assert unplaceable({"num_cpus": 2, "num_gpus": 1, "accelerator_type": "H100"}, nodes) == ""
    assert unplaceable({"num_cpus": 8, "num_gpus": 0}, nodes).startswith("--cpus-per-trial 8: no node has so many CPUs")
    assert unplaceable({"num_cpus": 1, "num_gpus": 2}, nodes).startswith("--gpus-per-trial 2: no node has so many GPUs")
    assert "no node has all of it" in unplaceable({"num_cpus": 4, "num_gpus": 1}, nodes)
    assert "the largest has 0" in unplaceable({"num_cpus": 4, "num_gpus": 1}, [])
    other = unplaceable({"num_cpus": 1, "num_gpus": 1, "accelerator_type": "A100"}, nodes)
    assert other == "--accelerator-type A100: no node has one; there are H100"


@pytest.mark.parametrize(("count", "way_out"), [(1, "free memory, or take a machine"), (3, "give fewer workers")])
def test_a_worker_that_ray_ends_for_want_of_memory_is_told_as_such(count: int, way_out: str) -> None:
    text = slots.problem_of(OutOfMemoryError("the node is running low on memory"), count)
    assert text.startswith(f"--workers {count}: Ray ended a worker for lack of memory")
    assert way_out in text


def test_memory_is_named_when_ray_does_not_tell_why_a_process_died(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = namedtuple("memory", "total available")
    away = ActorUnavailableError("it restarts", None)
    for available, short in ((1, True), (50, False)):
        monkeypatch.setattr(jobs.psutil, "virtual_memory", lambda available=available: memory(100, available))
        failure = jobs.failure_of(away, "")
        assert (failure.memory, failure.retry) == (short, True)
        assert ("lack of memory" in failure.reason) == short


FULL = "the disk at {} (of {}) has {:,} bytes free; free some"


def test_a_full_disk_is_named_when_a_task_raises_it(one: Workers, tmp_path: Path) -> None:
    def task(_: Any) -> Iterator[None]:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
        yield

    notes: list[str] = []
    (failure,) = run(one, task, notes=notes, folder=str(tmp_path / "not" / "there"))
    assert failure.retry
    assert f"the disk at {mount_of(tmp_path)} (of {tmp_path}/not/there) has" in failure.reason
    assert "bytes free; free some" in failure.reason
    assert len(notes) == TRIES - 1


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors
        "[enforce fail at inline_container.cc:672] . unexpected pos 23040 vs 22932",  # torch.save
        "4096 requested and 1000 written",  # numpy.save
    ],
)
def test_a_library_that_tells_of_a_full_disk_in_its_own_words_is_understood(
    one: Workers, tmp_path: Path, text: str
) -> None:
    notes: list[str] = []
    told = raising(str(tmp_path / "tries"), RuntimeError(text), 1)
    assert run(one, told, notes=notes, folder=str(tmp_path)) == ["done"]
    assert len(notes) == 1
    assert f"{text}; the disk at {mount_of(tmp_path)} (of {tmp_path}) has " in notes[0]


def test_a_full_disk_is_named_when_it_kills_a_worker(
    one: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes to mapped memory gets no error from a full disk, but SIGBUS."""
    monkeypatch.setattr(errors, "free_bytes", lambda _: 4096)

    def task(_: Any) -> Iterator[None]:
        signal.raise_signal(signal.SIGBUS)
        yield

    (failure,) = run(one, task, folder=str(tmp_path))
    assert failure.reason == f"the worker died: {FULL.format(mount_of(tmp_path), tmp_path, 4096)}"
    assert failure.retry


def test_an_error_on_a_disk_with_space_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, wrong = ValueError("a fault"), InputError("no such text")
    assert errors.explained(fault, str(tmp_path)) is fault
    monkeypatch.setattr(errors, "free_bytes", lambda _: 0)
    assert errors.explained(wrong, str(tmp_path)) is wrong
    full = errors.explained(fault, str(tmp_path))
    assert isinstance(full, OSError)
    assert full.errno == errno.ENOSPC
    assert str(full).endswith(f"a fault; {FULL.format(mount_of(tmp_path), tmp_path, 0)}")


Happened = tuple[str, bool]


def in_order(
    runner: Callable[..., None], name: str, monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> list[Happened]:
    """The starts (True) and results (False) of six measurements, as they come."""

    def task(_: Any) -> Iterator[int]:
        yield 1

    happened: list[Happened] = []
    monkeypatch.setattr(task_lists, name, task)
    specs = dict.fromkeys("abcdef", SimpleNamespace(cache=""))
    runner(specs, workers, lambda key, value: happened.append((key, value is None)))
    assert sorted(happened) == sorted((key, started) for key in specs for started in (True, False))
    return happened


def test_what_is_timed_runs_alone(session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(opened(2)) as workers:
        timed = in_order(task_lists.run_timings, "latency_task", monkeypatch, workers)
        workers.want(2)
        until(lambda: sum(slot.free for slot in workers._slots) == 2, workers)
        screened = in_order(task_lists.run_screens, "screen_task", monkeypatch, workers)
    assert [started for _, started in timed] == [True, False] * 6
    assert all(one[0] == other[0] for one, other in list(pairwise(timed))[::2])  # each ends before the next starts
    assert [started for _, started in screened[:2]] == [True, True]


def test_work_step_by_step_stands_still_between_its_results() -> None:
    done: list[int] = []

    def do(emit: Callable[[int], None]) -> None:
        for number in range(3):
            done.append(number)
            emit(number)

    steps = generated(do)
    assert next(steps) == 0
    steps.close()  # type: ignore[attr-defined]  # it waits until the thread has ended, wherever it was
    assert done == [0]
    assert list(generated(do)) == [0, 1, 2]
    assert not any(thread.name == "task" for thread in threading.enumerate())


def test_what_work_step_by_step_raises_is_raised_to_who_asks() -> None:
    def do(emit: Callable[[int], None]) -> None:
        emit(1)
        raise ZeroDivisionError

    steps = generated(do)
    assert next(steps) == 1
    with pytest.raises(ZeroDivisionError):
        next(steps)
