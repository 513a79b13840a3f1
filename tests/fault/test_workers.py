"""The workers of a search, on a real Ray: they are kept, lent to one task each, and replaced when they die."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import psutil
import pytest
import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, OutOfMemoryError

from nas.planning import errors
from nas.planning.errors import PAUSES, TRIES, Failure, NoWorkerError
from nas.planning.machine import Resources
from nas.planning.settings import parse_arguments
from nas.running import pool as pools
from nas.running import task_lists, workers
from nas.running.pool import Pool, Worker, unplaceable
from nas.running.session import ray_session
from nas.running.tasks import generated
from nas.running.workers import Task, Workers, open_workers, work
from search_spaces.errors import InputError
from trials.storage.disk import mount_of

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

PATIENCE = 120  # seconds; a bound for what would hang, on however slow a machine
Result = TypeVar("Result")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between the tries of a task. The pool, which is another process, keeps its own."""
    monkeypatch.setattr(workers, "PAUSES", (0.0,) * len(PAUSES))


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    settings, _, _ = parse_arguments(["--budget", "60%"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
        with ray_session(settings):
            yield


class Quick(Worker):
    """A worker that imports nothing."""

    def free(self) -> None:
        if self._results is not None:
            self._results.close()
        self._name, self._results = "", None


class QuickPool(Pool):
    """A pool of workers that start at once."""

    def _start(self) -> Any:
        return ray.remote(Quick).options(**self._options).remote()


@pytest.fixture(scope="module")
def one(session: None) -> Iterator[Workers]:
    """A single worker, which must be free again after every test."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "Pool", QuickPool)
            opened = stack.enter_context(open_workers(Resources(workers=1, cpus=0, gpus=0)))
        yield opened


def run(
    workers: Workers,
    task: Task,
    argument: Any = None,
    notes: list[str] | None = None,
    stop: int = 99,
    folder: str = "",
) -> list[Any]:
    """The results of ``task``; after ``stop`` of them nobody asks for more."""

    async def listen() -> list[Any]:
        results: list[Any] = []
        note = [].append if notes is None else notes.append
        coming = work(workers.pool, "task", cloudpickle.dumps(task), argument, note, folder)
        async for result in coming:
            results.append(result)
            if len(results) == stop:
                await coming.aclose()  # type: ignore[attr-defined]
                break
        return results

    return in_time(listen())


def in_time(coroutine: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


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


def taken(workers: Workers, task: str) -> Any:
    return ray.get(workers.pool.take.remote(task), timeout=PATIENCE)


def test_a_client_that_died_does_not_keep_its_worker(one: Workers) -> None:
    assert taken(one, "trial 7") == taken(one, "trial 7")
    ray.get(one.pool.give.remote("trial 7"))


def test_workers_of_clients_that_are_gone_come_back(one: Workers) -> None:
    taken(one, "trial 8")
    ray.get(one.pool.clear.remote())
    assert isinstance(run(one, where)[0], int)


def test_a_task_that_is_given_back_while_it_waits_takes_no_worker(one: Workers) -> None:
    """Its client was killed: nobody would ever give that worker back."""
    taken(one, "trial 9")
    one.pool.take.remote("trial 10", "its client")
    ray.get(one.pool.give.remote("trial 10", "its client"))
    ray.get(one.pool.give.remote("trial 9"))
    assert isinstance(run(one, where)[0], int)


def test_a_client_that_waits_twice_for_one_task_takes_one_worker(one: Workers) -> None:
    taken(one, "trial 9")
    waiting = [one.pool.take.remote("trial 10") for _ in range(2)]  # one client died, and another is in its place
    ray.get(one.pool.give.remote("trial 9"))
    assert [found is None for found in ray.get(waiting, timeout=PATIENCE)].count(False) == 1
    ray.get(one.pool.give.remote("trial 10"))
    assert isinstance(run(one, where)[0], int)


def test_a_question_that_comes_after_its_client_has_died_takes_no_worker(one: Workers) -> None:
    """Calls of different processes, and of one process to an actor like the pool, may overtake each other."""
    ray.get(one.pool.close.remote("trial 11"))
    assert taken(one, "trial 11") is None
    ray.get(one.pool.give.remote("trial 12", "its client"))
    assert ray.get(one.pool.take.remote("trial 12", "its client"), timeout=PATIENCE) is None
    assert isinstance(run(one, where)[0], int)


def test_whoever_gives_back_late_takes_nothing_from_the_next_client(one: Workers) -> None:
    first = ray.get(one.pool.take.remote("trial 13", "first"), timeout=PATIENCE)
    waiting = one.pool.take.remote("trial 13", "second")
    ray.get(one.pool.give.remote("trial 13", "first"))
    assert ray.get(waiting, timeout=PATIENCE) == first
    ray.get(one.pool.give.remote("trial 13", "second"))
    assert isinstance(run(one, where)[0], int)


def test_whoever_is_cancelled_while_it_waits_takes_no_worker(one: Workers) -> None:
    async def cancelled() -> None:
        waiting = asyncio.create_task(anext(work(one.pool, "helper", cloudpickle.dumps(where), None)))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # it has asked
        waiting.cancel()
        await asyncio.wait({waiting})

    taken(one, "trial 12")
    in_time(cancelled())
    ray.get(one.pool.give.remote("trial 12"))
    assert isinstance(run(one, where)[0], int)


def pool_processes() -> set[psutil.Process]:
    return {one for one in psutil.Process().children(recursive=True) if "ray::Pool" in one.name()}


def test_a_pool_that_is_killed_starts_anew_and_the_task_is_done_again(session: None) -> None:
    """Its workers end with it. This is what the memory monitor of Ray does when a neighbour takes the memory."""
    others = pool_processes()
    with open_workers(Resources(workers=1, cpus=0, gpus=0)) as workers:
        (first,) = run(workers, where)
        (process,) = pool_processes() - others
        process.kill()
        (second,) = run(workers, where)
        assert isinstance(second, int)
        assert first != second


def test_a_pool_that_is_ended_for_good_is_no_want_of_memory(session: None) -> None:
    with open_workers(Resources(workers=1, cpus=0, gpus=0)) as workers:
        run(workers, where)
        ray.kill(workers.pool)
        with pytest.raises(NoWorkerError, match="the pool of workers was ended"):
            run(workers, where)


class Absent(Worker):
    """A worker whose process ends as soon as it has started, in its first ``times`` starts."""

    def __init__(self, file: str = "", times: int = 99) -> None:
        super().__init__()
        with open(file, "a") as starts:
            starts.write("x")
        self._absent = len(Path(file).read_text()) <= times

    def free(self) -> None:
        if self._absent:
            os._exit(1)
        super().free()


class Abroad(Worker):
    """A worker on a node where the project is not installed."""

    def free(self) -> None:
        raise ModuleNotFoundError("No module named 'nas'")


class Unbuilt(Worker):
    """The same, noticed earlier."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'nas'")


class Impatient(Pool):
    """A pool without pauses. In ``many`` of its places are ``lame`` workers instead."""

    look, patience = 0.1, 0.0

    def __init__(self, count: int, options: dict[str, Any], lame: Callable[[], Any] | None, many: int) -> None:
        self._lame, self._many = lame, many
        super().__init__(count, options)

    def pause(self, failures: int) -> float:
        """None at first. Later a long one: a machine that starts processes without end does nothing else."""
        return 0.0 if failures < TRIES + 4 else PATIENCE

    def _start(self) -> Any:
        replaces = hasattr(self, "_slots")  # only a lame one is ever replaced
        if self._lame and (replaces or self._many):
            self._many -= not replaces
            return self._lame()
        return ray.remote(Quick).options(**self._options).remote()


class Patient(Impatient):
    """A pool that looks often and waits for nodes without end."""

    patience = float("inf")


def impatient(workers: int, lame: Callable[[], Any] | None = None, many: int = 1, **options: Any) -> Workers:
    given = {"num_cpus": 0, **options}
    return Workers(ray.remote(Impatient).options(num_cpus=0).remote(workers, given, lame, many), workers)


def actor(kind: type[Worker], *given: Any) -> Callable[[], Any]:
    return lambda: ray.remote(kind).options(num_cpus=0).remote(*given)


def test_the_search_goes_on_without_a_worker_that_does_not_start(session: None, tmp_path: Path) -> None:
    pool = impatient(2, actor(Absent, str(tmp_path / "starts")))
    notice = pool.pool.next_notice.remote()
    run(pool, where)
    assert "cannot be started" in (text := ray.get(notice, timeout=PATIENCE))
    assert text.endswith("(the search goes on with 1 of 2 workers)")
    assert len({run(pool, where)[0] for _ in range(4)}) == 1


def test_a_worker_that_did_not_start_is_tried_again_later(session: None, tmp_path: Path) -> None:
    pool = impatient(2, actor(Absent, str(tmp_path / "starts"), TRIES + 2))
    assert taken(pool, "trial 1") != taken(pool, "trial 2")
    assert len((tmp_path / "starts").read_text()) > TRIES + 2


@pytest.mark.parametrize("kind", [Abroad, Unbuilt])
def test_what_cannot_be_imported_is_told_as_such(session: None, kind: type[Worker]) -> None:
    pool = impatient(2, actor(kind), many=2)
    with pytest.raises(NoWorkerError, match=r"cannot import .*ModuleNotFoundError: No module named 'nas'.*install"):
        run(pool, where)


def test_workers_that_do_not_start_are_told_as_such(session: None, tmp_path: Path) -> None:
    pool = impatient(1, actor(Absent, str(tmp_path / "starts")))
    with pytest.raises(NoWorkerError, match="a worker cannot be started") as raised:
        run(pool, where)
    assert "memory" not in str(raised.value).partition("Some common causes")[0]
    assert "\n" not in str(raised.value)


def test_workers_that_no_node_can_have_are_told_as_such(session: None) -> None:
    pool = impatient(2, num_cpus=9999)
    with pytest.raises(NoWorkerError, match=r"--cpus-per-trial 9999: no node has so many CPUs, the largest has \d+"):
        run(pool, where)


def test_workers_wait_for_a_node_that_may_join(session: None) -> None:
    """Within the patience of the pool this is a notice, not an error."""
    pool = Workers(ray.remote(Patient).options(num_cpus=0).remote(1, {"num_cpus": 9999}, None, 0), 1).pool
    waiting = pool.take.remote("trial 1", "its client")
    assert "the search waits for such a node" in ray.get(pool.next_notice.remote(), timeout=PATIENCE)
    assert ray.wait([waiting], timeout=0)[0] == []
    ray.get(pool.give.remote("trial 1", "its client"))
    assert ray.get(waiting, timeout=PATIENCE) is None


def test_a_node_can_have_a_worker_or_the_flag_is_named() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert unplaceable({"num_cpus": 4, "num_gpus": 0}, nodes) == ""
    assert unplaceable({"num_cpus": 2, "num_gpus": 0.5}, nodes) == ""
    assert unplaceable({"num_cpus": 8, "num_gpus": 0}, nodes).startswith("--cpus-per-trial 8: no node has so many CPUs")
    assert unplaceable({"num_cpus": 1, "num_gpus": 2}, nodes).startswith("--gpus-per-trial 2: no node has so many GPUs")
    assert "no node has both" in unplaceable({"num_cpus": 4, "num_gpus": 1}, nodes)
    assert "the largest has 0" in unplaceable({"num_cpus": 4, "num_gpus": 1}, [])


@pytest.mark.parametrize(("count", "way_out"), [(1, "free memory, or take a machine"), (3, "give fewer workers")])
def test_a_worker_that_ray_ends_for_want_of_memory_is_told_as_such(count: int, way_out: str) -> None:
    text = pools._problem(OutOfMemoryError("the node is running low on memory"), count)
    assert text.startswith(f"--workers {count}: Ray ended a worker for lack of memory")
    assert way_out in text


def test_memory_is_named_when_ray_does_not_tell_why_a_process_died(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = namedtuple("memory", "total available")
    away = ActorUnavailableError("it restarts", None)
    for available, short in ((1, True), (50, False)):
        monkeypatch.setattr(workers.psutil, "virtual_memory", lambda available=available: memory(100, available))
        failure = workers._death("pool of workers", away, "")
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
        os.kill(os.getpid(), signal.SIGBUS)
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
    with open_workers(Resources(workers=2, cpus=0, gpus=0)) as workers:
        timed = in_order(task_lists.run_timings, "latency_task", monkeypatch, workers)
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
