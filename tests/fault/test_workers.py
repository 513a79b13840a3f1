"""The workers of a search, on a real Ray: they are kept, handed out one task each, and replaced when they die."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from nas.planning.errors import Failure
from nas.planning.machine import Resources
from nas.planning.settings import parse_arguments
from nas.running import task_lists as stages
from nas.running.session import ray_session
from nas.running.tasks import generated
from nas.running.workers import WORKER_DEATHS, Pool, Task, Worker, Workers, open_workers, work
from search_spaces.errors import InputError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    settings, _, _ = parse_arguments(["--budget", "60%"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
        with ray_session(settings):
            yield


@pytest.fixture(scope="module")
def one(session: None) -> Iterator[Workers]:
    """A single worker, which must be free again after every test."""
    with open_workers(Resources(workers=1, cpus=0, gpus=0)) as workers:
        yield workers


def run(
    workers: Workers, task: Task, argument: Any = None, notes: list[str] | None = None, stop: int = 99
) -> list[Any]:
    """What ``task`` says; after ``stop`` things nobody asks for more."""

    async def listen() -> list[Any]:
        said: list[Any] = []
        heard = work(
            workers.pool, "task", cloudpickle.dumps(task), argument, [].append if notes is None else notes.append
        )
        async for thing in heard:
            said.append(thing)
            if len(said) == stop:
                await heard.aclose()  # type: ignore[attr-defined]
                break
        return said

    return asyncio.run(listen())


def dying(file: str, times: int) -> Task:
    """Says where it is, and takes its process with it the first ``times`` that it is asked for more."""

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
    assert len(set(processes)) == WORKER_DEATHS + 1
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
        def do(say: Callable[[int], None]) -> None:
            try:
                for number in range(5):
                    say(number)
                    file.write_text(f"went on after {number}")
            finally:
                file.write_text(file.read_text() + ", ended")

        return generated(do)

    assert run(one, task, stop=3) == [0, 1, 2]
    run(one, where)  # the worker is free only when that has ended
    assert file.read_text() == "went on after 1, ended"


def test_a_client_that_died_does_not_keep_its_worker(one: Workers) -> None:
    first = ray.get(one.pool.take.remote("trial 7"), timeout=60)
    second = ray.get(one.pool.take.remote("trial 7"), timeout=60)
    assert first == second
    ray.get(one.pool.give.remote("trial 7"))


def test_without_its_pool_a_task_ends_as_for_want_of_memory(session: None) -> None:
    with open_workers(Resources(workers=1, cpus=0, gpus=0)) as workers:
        assert isinstance(run(workers, where)[0], int)
        ray.kill(workers.pool)
        (failure,) = run(workers, where)
        assert (failure.retry, failure.memory) == (True, True)


def test_what_cannot_be_imported_is_no_want_of_memory(session: None) -> None:
    class Stranger(Worker):
        def free(self) -> None:
            raise ModuleNotFoundError("No module named 'nas'")

    class Abroad(Pool):
        def _start(self) -> Any:
            return ray.remote(Stranger).options(**self._options).remote()

    pool = ray.remote(Abroad).options(num_cpus=0).remote(1, {"num_cpus": 0})
    with pytest.raises(ModuleNotFoundError):
        run(Workers(pool, 1), where)


def test_what_is_timed_runs_alone(session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)

    def task(_: str) -> Iterator[int]:
        mine = Path(folder) / str(os.getpid())
        mine.touch()
        time.sleep(0.3)
        beside = len(os.listdir(folder))
        mine.unlink()
        yield beside

    heard: list[int] = []
    with open_workers(Resources(workers=2, cpus=0, gpus=0)) as workers:
        for name, expected in (("latency_task", {1}), ("screen_task", {2})):
            monkeypatch.setattr(stages, name, task)
            runner = {"latency_task": stages.run_timings, "screen_task": stages.run_screens}[name]
            heard.clear()
            runner(dict.fromkeys("abcdef"), workers, lambda _, value: heard.append(value) if value else None)  # type: ignore[arg-type]
            assert len(heard) == 6
            assert expected <= set(heard)
            assert max(heard) == max(expected)


def test_work_step_by_step_stands_still_between_what_it_says() -> None:
    done: list[int] = []

    def do(say: Callable[[int], None]) -> None:
        for number in range(3):
            done.append(number)
            say(number)

    steps = generated(do)
    assert next(steps) == 0
    time.sleep(0.05)
    assert done == [0]
    assert list(steps) == [1, 2]
    assert not any(thread.name == "task" for thread in threading.enumerate())


def test_what_work_step_by_step_raises_is_raised_to_who_asks() -> None:
    def do(say: Callable[[int], None]) -> None:
        say(1)
        raise ZeroDivisionError

    steps = generated(do)
    assert next(steps) == 1
    with pytest.raises(ZeroDivisionError):
        next(steps)


def test_workers_of_clients_that_are_gone_come_back(one: Workers) -> None:
    ray.get(one.pool.take.remote("trial 8"), timeout=60)
    ray.get(one.pool.clear.remote())
    assert isinstance(run(one, where)[0], int)
