"""The pool of workers: Ray actors that run one task at a time. It starts them, lends them, and replaces dead ones.

A worker imports the libraries and loads the teacher once, and every later task reuses them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from nas.planning.errors import TRIES, NoWorkerError, explained, too_little_memory
from search_spaces.errors import named, one_line

LONGEST_PAUSE = 600.0  # seconds between two attempts to start a worker that has failed many times
LOOK = 10.0  # seconds without an answer of a worker, after which the pool looks whether any node can have it
PATIENCE = 600.0  # seconds in which a node may join, one that was lost or one that the autoscaler brings


class Worker:
    """One worker process. It runs its task as far as the next result, and only when that result is requested."""

    def __init__(self) -> None:
        self._name, self._folder = "", ""
        self._results: Any = None

    def free(self) -> None:
        """End the current task where it is, and import what tasks need."""
        if self._results is not None:
            self._results.close()
        self._name, self._results = "", None
        import_module("nas.running.tasks")  # here, because clients import this file and do not need torch

    def begin(self, name: str, task: bytes, argument: Any, folder: str) -> None:
        """Begin ``task``, a pickled `Task`, with its ``argument``. It writes to ``folder``. The worker must be free."""
        self._name, self._folder = name, folder
        self._results = cloudpickle.loads(task)(argument)

    def more(self, name: str) -> Any:
        """The next result of the task, or None at its end. Raises OSError when the worker has ended this task."""
        if self._results is None or self._name != name:
            raise OSError(f"the worker of {name} was given to another task")
        try:
            return next(self._results, None)
        except Exception as error:
            told = explained(error, self._folder)
            if told is error:
                raise
            raise told from error


@dataclass(eq=False)
class Slot:
    """The place of one worker. ``problem`` says why it has none; it is empty while a worker starts or works.

    ``unplaced`` is when it was first seen that no node can have the worker, by the monotonic clock in seconds.
    """

    worker: Any
    problem: str = ""
    unplaced: float | None = None


class Pool:
    """Starts ``count`` workers, lends free ones to tasks, and replaces dead ones.

    It starts its workers before the search starts any other process. When memory is short, Ray ends the youngest
    processes first. ``options`` are the Ray options of each worker, such as ``num_gpus``.

    The search goes on without a worker that cannot be started. The pool tries to start it again after growing pauses.
    """

    look, patience = LOOK, PATIENCE

    def __init__(self, count: int, options: Mapping[str, Any]) -> None:
        self._options = options
        self._slots = [Slot(self._start()) for _ in range(count)]
        self._new = list(self._slots)
        self._free: deque[Slot] = deque()
        self._busy: dict[str, Slot] = {}
        self._waiting: dict[str, asyncio.Future[Any]] = {}  # by task, oldest first
        self._clients: dict[str, str] = {}  # who has a worker for a task, or waits for one
        self._gone: set[str] = set()  # clients and tasks that get no worker any more
        self._freeing: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to its tasks
        self._notices: asyncio.Queue[str] = asyncio.Queue()

    def _start(self) -> Any:
        worker = ray.remote(Worker).options(**self._options).remote()
        worker.free.remote()
        return worker

    def pause(self, failures: int) -> float:
        """Seconds before a worker that could not be started ``failures`` times is tried again."""
        return float(min(4 ** (failures - 1), LONGEST_PAUSE))

    async def take(self, task: str, client: str = "") -> Any:
        """Wait for a free worker and assign it to ``task``. Returns None when the task is given back meanwhile.

        ``client`` names who asks. An earlier client of the same task, which may have died, loses what it has or waits
        for. Raises NoWorkerError when there is no worker left.
        """
        while self._new:
            self._free_later(self._new.pop(0))
        self._drop(task)
        if {task, client} & self._gone:
            return None
        found = self._waiting[task] = asyncio.get_running_loop().create_future()
        self._clients[task] = client
        self._assign()
        self._refuse_without_workers()
        return await found

    async def give(self, task: str, client: str | None = None) -> None:
        """Take back the worker of ``task``, if it has one. If it waits for one, it waits no more.

        With a ``client``, only what that client has or waits for. Calls may overtake each other: a client that has
        given back, asks in vain later.
        """
        if client is None or self._clients.get(task) == client:
            self._drop(task)
        else:
            self._gone.add(client)

    async def close(self, task: str) -> None:
        """Take back the worker of ``task`` for good, because its client has died. The task gets none any more."""
        self._gone.add(task)
        self._drop(task)

    def _drop(self, task: str) -> None:
        self._clients.pop(task, None)
        waiting, slot = self._waiting.pop(task, None), self._busy.pop(task, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if slot is not None:
            self._free_later(slot)

    async def clear(self) -> None:
        """Take back all workers."""
        for task in [*self._busy, *self._waiting]:
            self._drop(task)

    async def next_notice(self) -> str:
        """Wait for the next notice: a line about workers that are missing."""
        return await self._notices.get()

    def _assign(self) -> None:
        while self._free and self._waiting:
            task = next(iter(self._waiting))
            found = self._waiting.pop(task)
            if not found.done():
                slot = self._busy[task] = self._free.popleft()
                found.set_result(slot.worker)

    def _refuse_without_workers(self) -> None:
        if not all(slot.problem for slot in self._slots):
            return
        problems = "; ".join(dict.fromkeys(slot.problem for slot in self._slots))
        for found in self._waiting.values():
            if not found.done():
                found.set_exception(NoWorkerError(problems))
        self._waiting.clear()

    def _free_later(self, slot: Slot) -> None:
        task = asyncio.create_task(self._make_free(slot))
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)

    async def _make_free(self, slot: Slot) -> None:
        """Make the worker of ``slot`` free. Replace it as often as it takes."""
        for failures in count(1):
            try:
                await self._answer(slot)
                break
            except RayError as error:
                broken = _cannot_import(error)
                if broken or failures >= TRIES:
                    self._miss(slot, _problem(error, len(self._slots)))
            slot.worker = None  # Ray ends it, if it is not dead, and another one may have its place
            await asyncio.sleep(self.pause(failures))
            slot.worker = self._start()
        slot.problem = ""
        self._free.append(slot)
        self._assign()

    async def _answer(self, slot: Slot) -> None:
        """Wait until the worker of ``slot`` is free. Raises RayError when it is dead."""
        free = asyncio.ensure_future(_finished(slot.worker.free.remote()))
        while not (await asyncio.wait({free}, timeout=self.look))[0]:
            self._look_for_a_place(slot)
        await free
        slot.unplaced = None

    def _look_for_a_place(self, slot: Slot) -> None:
        problem = unplaceable(self._options, (node["Resources"] for node in ray.nodes() if node["Alive"]))
        if not problem:
            slot.unplaced, slot.problem = None, ""
            return
        now = time.monotonic()
        if all(one.unplaced is None for one in self._slots):
            self._notices.put_nowait(f"{problem}; the search waits for such a node")
        slot.unplaced = slot.unplaced or now
        if now - slot.unplaced >= self.patience:
            self._miss(slot, f"{problem}; give at most what a node has, or add such a node; the same command continues")

    def _miss(self, slot: Slot, problem: str) -> None:
        left = sum(not one.problem for one in self._slots if one is not slot)
        if left and problem != slot.problem:
            self._notices.put_nowait(f"{problem} (the search goes on with {left} of {len(self._slots)} workers)")
        slot.problem = problem
        self._refuse_without_workers()


async def _finished(call: Any) -> None:
    await call


def unplaceable(options: Mapping[str, Any], nodes: Iterable[Mapping[str, float]]) -> str:
    """Why none of the ``nodes``, given by their total resources, can have a worker with ``options``; empty if one can.

    What other tasks use at the moment does not count.
    """
    asked = {"CPU": float(options.get("num_cpus", 0)), "GPU": float(options.get("num_gpus", 0))}
    found = [{name: node.get(name, 0.0) for name in asked} for node in nodes]
    if any(all(node[name] >= amount for name, amount in asked.items()) for node in found):
        return ""
    flags = {"CPU": "--cpus-per-trial", "GPU": "--gpus-per-trial"}
    for name, amount in asked.items():
        most = max((node[name] for node in found), default=0.0)
        if amount > most:
            return f"{flags[name]} {amount:g}: no node has so many {name}s, the largest has {most:g}"
    return f"--cpus-per-trial {asked['CPU']:g} --gpus-per-trial {asked['GPU']:g}: no node has both"


def _cannot_import(error: RayError) -> bool:
    """Whether the worker started and failed in its imports. They would fail again on the same node."""
    return isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed)


def _problem(error: RayError, workers: int) -> str:
    """The cause of a worker that could not be started, and the way out, for the user."""
    if isinstance(error, OutOfMemoryError):
        return too_little_memory(workers)
    if _cannot_import(error):
        cause = error.cause if isinstance(error, RayTaskError) else None
        text = named(cause) if cause is not None else str(error).strip().splitlines()[-1]
        return (
            f"a worker cannot import what trials need ({one_line(text)}); install the project in the Python of "
            "Ray on every node; the same command continues"
        )
    logs = "Ray's logs (/tmp/ray/session_latest/logs, or ray logs) tell more"
    return f"a worker cannot be started ({one_line(error)}); {logs}; the same command continues"
