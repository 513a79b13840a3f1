"""The workers of a search: processes that prepare, survey, train and read, each as large as a trial.

They are started once and stay, so that the libraries and the teacher that one task has loaded are there for the next.
`Pool` hands them out, one task each; `work` is what a task looks like to those who want it done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.planning.errors import Failure, classify
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from nas.planning.machine import Resources

WORKER_DEATHS = 2  # a task whose worker or node died is done again this often, from its last checkpoint
PAUSE = 1.0  # seconds before a worker that died is replaced

Task = Callable[[Any], Iterator[Any]]


class Worker:
    """One process. A task is a generator: it stands still until more is asked of it."""

    def __init__(self) -> None:
        self._name = ""
        self._said: Any = None

    def free(self) -> None:
        """Give up the task that was begun, where it stands, and have at hand what the next one needs."""
        if self._said is not None:
            self._said.close()
        self._name, self._said = "", None
        import_module("nas.running.tasks")  # not above: who merely asks for work needs nothing of it

    def begin(self, name: str, task: bytes, argument: Any) -> None:
        """Take up ``task``, a pickled `Task`. The worker is free."""
        self._name, self._said = name, cloudpickle.loads(task)(argument)

    def more(self, name: str) -> Any:
        """What the task says next, or None at its end. Raises OSError when another one has been begun meanwhile."""
        if self._said is None or self._name != name:
            raise OSError(f"the worker of {name} was taken from it")
        return next(self._said, None)


class Pool:
    """Starts ``count`` workers, knows which of them are free, and replaces those that died.

    It starts them itself, and before all else, because Ray ends the youngest processes first where memory is short.
    ``options`` are what Ray is to give to each.
    """

    def __init__(self, count: int, options: Mapping[str, Any]) -> None:
        self._options = options
        self._started = [self._start() for _ in range(count)]
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        self._busy: dict[str, Any] = {}
        self._coming: set[asyncio.Task[None]] = set()

    def _start(self) -> Any:
        worker = ray.remote(Worker).options(**self._options).remote()
        worker.free.remote()
        return worker

    async def take(self, task: str) -> Any:
        """A worker for ``task``, once there is one. One that the task still has, of a client that died, goes back."""
        while self._started:
            self._soon(self._started.pop(0))
        await self.give(task)
        found = await self._free.get()
        if isinstance(found, Exception):
            self._free.put_nowait(found)
            raise found
        self._busy[task] = found
        return found

    async def give(self, task: str) -> None:
        """Take back the worker of ``task``, if it has one."""
        worker = self._busy.pop(task, None)
        if worker is not None:
            self._soon(worker)

    async def clear(self) -> None:
        """Take back all workers."""
        for task in list(self._busy):
            await self.give(task)

    def _soon(self, worker: Any) -> None:
        task = asyncio.create_task(self._when_free(worker))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _when_free(self, worker: Any) -> None:
        problem: Exception | None = None
        for _ in range(WORKER_DEATHS + 2):  # the first is the one that died
            try:
                await worker.free.remote()
            except RayTaskError as error:  # it cannot import what it needs: nor can another
                self._free.put_nowait(error.cause)
                return
            except RayError as error:
                problem = error
                await asyncio.sleep(PAUSE)
                worker = self._start()
                continue
            self._free.put_nowait(worker)
            return
        assert problem is not None
        self._free.put_nowait(problem)


@dataclass(frozen=True)
class Workers:
    """``count`` workers at most, and the `Pool` that hands them out."""

    pool: Any
    count: int


@contextmanager
def open_workers(resources: Resources) -> Iterator[Workers]:
    """Start the workers of a search, without waiting for them; they end with the block. Ray must be connected."""
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lives as long as this
    pool = ray.remote(Pool).options(num_cpus=0, scheduling_strategy=here).remote(resources.workers, options)
    try:
        yield Workers(pool, resources.workers)
    finally:
        ray.kill(pool)  # and with it what it has started


async def work(
    pool: Any, name: str, task: bytes, argument: Any, note: Callable[[str], None] = lambda reason: None
) -> AsyncIterator[Any]:
    """What ``task``, a pickled `Task`, says in a worker that is free, the next when it is asked for.

    When the worker or its node dies, or its surroundings fail, the task is done again, `WORKER_DEATHS` times, and
    ``note`` hears why; what it had said is said again. The last of all is a `Failure` where the task came to nothing.
    ``name`` is its own among the tasks of the search. Raises InputError when the task does.
    """
    for left in reversed(range(WORKER_DEATHS + 1)):
        try:
            worker = await pool.take.remote(name)
        except RayError as error:
            yield _without_worker(error)
            return
        try:
            await worker.begin.remote(name, task, argument)
            while (one := await worker.more.remote(name)) is not None:
                yield one
            return
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            failure = classify(error.cause)
        except RayError as error:  # its worker, or the node of that
            failure = Failure(f"its worker died: {_short(error)}", True, isinstance(error, OutOfMemoryError), error)
        finally:
            pool.give.remote(name)
        if not (failure.retry and left):
            break
        note(failure.reason)
    yield failure


def _without_worker(error: RayError) -> Failure:
    """Workers died before they were ready, each time, or the pool did: so short of memory is the machine.

    Raises ``error`` when it is that workers cannot import what they need.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayError):
        raise error
    return Failure(f"no worker could be had: {_short(error)}", retry=True, memory=True, error=error)


def _short(error: RayError) -> str:
    return " ".join(str(error).split())[:300]
