"""The workers of a search: Ray actors that run one task at a time, each with the resources of a trial.

Workers start once and stay alive. A worker imports the libraries and loads the teacher once, and every later task
reuses them. `Pool` assigns workers to tasks. `work` runs one task on a worker, with retries.
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

WORKER_DEATHS = 2  # retries of a task, after its worker or node died or its surroundings failed
PAUSE = 1.0  # seconds before a dead worker is replaced

Task = Callable[[Any], Iterator[Any]]
"""A task is a function of one argument that returns a generator of results."""


class Worker:
    """One worker process. It runs its task as far as the next result, and only when that result is requested."""

    def __init__(self) -> None:
        self._name = ""
        self._results: Any = None

    def free(self) -> None:
        """End the current task where it is, and import what tasks need."""
        if self._results is not None:
            self._results.close()
        self._name, self._results = "", None
        import_module("nas.running.tasks")  # here, because clients import this file and do not need torch

    def begin(self, name: str, task: bytes, argument: Any) -> None:
        """Begin ``task``, a pickled `Task`, with its ``argument``. The worker must be free."""
        self._name, self._results = name, cloudpickle.loads(task)(argument)

    def more(self, name: str) -> Any:
        """The next result of the task, or None at its end. Raises OSError when the worker has ended this task."""
        if self._results is None or self._name != name:
            raise OSError(f"the worker of {name} was given to another task")
        return next(self._results, None)


class Pool:
    """Starts ``count`` workers, assigns free ones to tasks, and replaces dead ones.

    It starts its workers before the search starts any other process. When memory is short, Ray ends the youngest
    processes first. ``options`` are the Ray options of each worker, such as ``num_gpus``.
    """

    def __init__(self, count: int, options: Mapping[str, Any]) -> None:
        self._options = options
        self._started = [self._start() for _ in range(count)]
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        self._busy: dict[str, Any] = {}
        self._freeing: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to its tasks

    def _start(self) -> Any:
        worker = ray.remote(Worker).options(**self._options).remote()
        worker.free.remote()
        return worker

    async def take(self, task: str) -> Any:
        """Wait for a free worker and assign it to ``task``.

        A client that died may have left a worker assigned to the same task. That worker is taken back first. Raises
        the last error when no worker could be started.
        """
        while self._started:
            self._free_later(self._started.pop(0))
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
            self._free_later(worker)

    async def clear(self) -> None:
        """Take back all workers."""
        for task in list(self._busy):
            await self.give(task)

    def _free_later(self, worker: Any) -> None:
        task = asyncio.create_task(self._make_free(worker))
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)

    async def _make_free(self, worker: Any) -> None:
        problem: Exception | None = None
        for _ in range(WORKER_DEATHS + 2):  # one more attempt, because ``worker`` may have died in its task
            try:
                await worker.free.remote()
            except RayTaskError as error:  # an import failed; it would fail in every worker
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
    """The `Pool` actor of a search, and the ``count`` of its workers."""

    pool: Any
    count: int


@contextmanager
def open_workers(resources: Resources) -> Iterator[Workers]:
    """Start the workers of a search without waiting for them. They end with the block. Ray must be connected."""
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    # The pool runs on the node of the driver, so it does not die with another node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    pool = ray.remote(Pool).options(num_cpus=0, scheduling_strategy=here).remote(resources.workers, options)
    try:
        yield Workers(pool, resources.workers)
    finally:
        ray.kill(pool)  # the workers end with the pool, which owns them


async def work(
    pool: Any, name: str, task: bytes, argument: Any, note: Callable[[str], None] = lambda reason: None
) -> AsyncIterator[Any]:
    """Run ``task``, a pickled `Task`, on a free worker, and yield its results as they are requested.

    A task is retried up to `WORKER_DEATHS` times when its worker or node dies, or after an error that a retry can mend
    (`nas.planning.errors.classify`). ``note`` is called with the reason of each retry. A retry may yield a result
    again. If the task fails for good, the last result is a `Failure`. ``name`` must be unique among the tasks of the
    search. Raises InputError when the task does.
    """
    for left in reversed(range(WORKER_DEATHS + 1)):
        try:
            worker = await pool.take.remote(name)
        except RayError as error:
            yield _without_worker(error)
            return
        try:
            await worker.begin.remote(name, task, argument)
            while (result := await worker.more.remote(name)) is not None:
                yield result
            return
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            failure = classify(error.cause)
        except RayError as error:  # the worker or its node died
            failure = Failure(f"the worker died: {_short(error)}", True, isinstance(error, OutOfMemoryError), error)
        finally:
            pool.give.remote(name)
        if not (failure.retry and left):
            break
        note(failure.reason)
    yield failure


def _without_worker(error: RayError) -> Failure:
    """The failure of a task that got no worker: every new worker died before it was ready, or the pool died.

    The cause is taken to be lack of memory. Raises ``error`` when it is another one, such as a failed import.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayError):
        raise error
    return Failure(f"no worker is available: {_short(error)}", retry=True, memory=True, error=error)


def _short(error: RayError) -> str:
    return " ".join(str(error).split())[:300]


def too_little_memory(workers: int) -> str:
    """The message for a user whose machine is too small for so many ``workers``."""
    return (
        f"--workers {workers}: Ray ended workers for lack of memory {WORKER_DEATHS + 1} times; give fewer workers or "
        "free memory; finished trials are kept, and the same command continues"
    )
