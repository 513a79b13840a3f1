"""The workers of a search, and how a task runs on one of them, with retries."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.planning.errors import PAUSES, Failure, NoWorkerError, classify, full_disk
from nas.running.pool import Pool
from search_spaces.errors import InputError, one_line

if TYPE_CHECKING:
    from nas.planning.machine import Resources

log = logging.getLogger(__name__)

# With more of the memory in use than this share, Ray ends processes. The variable replaces the default.
RAY_MEMORY_SETTING, RAY_MEMORY_SHARE = "RAY_memory_usage_threshold", 0.95

Task = Callable[[Any], Iterator[Any]]
"""A task is a function of one argument that returns a generator of results."""


@dataclass(frozen=True)
class Workers:
    """The `Pool` actor of a search, and the ``count`` of its workers."""

    pool: Any
    count: int


@contextmanager
def open_workers(resources: Resources) -> Iterator[Workers]:
    """Start the workers of a search without waiting for them. They end with the block. Ray must be connected.

    The log has a warning for each worker that the search has to do without.
    """
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    # The pool runs on the node of the driver, so it does not die with another node. When Ray ends it because memory is
    # short, it starts anew, with new workers.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    placed = ray.remote(Pool).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1)
    pool = placed.remote(resources.workers, options)
    notices = Thread(target=_log_notices, args=(pool,), name="notices", daemon=True)
    notices.start()
    try:
        yield Workers(pool, resources.workers)
    finally:
        ray.kill(pool)  # the workers end with the pool, which owns them
        notices.join(timeout=5)


def _log_notices(pool: Any) -> None:
    while True:
        try:
            log.warning("%s", ray.get(pool.next_notice.remote()))
        except ActorDiedError:  # it was ended for good
            return
        except RayError:  # it starts anew
            continue


async def work(
    pool: Any,
    name: str,
    task: bytes,
    argument: Any,
    note: Callable[[str], None] = lambda reason: None,
    folder: str = "",
) -> AsyncIterator[Any]:
    """Run ``task``, a pickled `Task`, on a free worker, and yield its results as they are requested.

    A task is tried up to `TRIES` times when its worker or node dies, or after an error that a retry can mend
    (`nas.planning.errors.classify`). Between the tries are `PAUSES`. ``note`` is called with the reason of each retry.
    A retry may yield a result again. If the task fails for good, the last result is a `Failure`. ``name`` must be
    unique among the tasks of the search. ``folder`` is where the task writes: a failure names it when its disk is full.

    Raises InputError when the task does, and NoWorkerError when there is no worker left.
    """
    for pause in (*PAUSES, None):
        who, client = "pool of workers", uuid4().hex
        try:
            worker = await _taken(pool, name, client)
            who = "worker"
            if worker is None:  # nobody wants the results any more
                return
            await worker.begin.remote(name, task, argument, folder)
            while (result := await worker.more.remote(name)) is not None:
                yield result
            return
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            failure = classify(error.cause)
        except RayError as error:
            failure = _death(who, error, folder)
        finally:
            pool.give.remote(name, client)  # also where it still waits for a worker
        if not failure.retry or pause is None:
            break
        note(failure.reason)
        await asyncio.sleep(pause)
    yield failure


async def _taken(pool: Any, name: str, client: str) -> Any:
    try:
        return await pool.take.remote(name, client)
    except ActorDiedError as error:
        raise NoWorkerError("the pool of workers was ended; give the same command again") from error


def _death(who: str, error: RayError, folder: str) -> Failure:
    """The failure of a task whose worker or node died, or whose pool did.

    A full disk kills a worker that writes to mapped memory. Ray does not tell why a process died that starts anew.
    """
    memory = isinstance(error, OutOfMemoryError) or (isinstance(error, ActorUnavailableError) and _memory_is_short())
    cause = "Ray ended it for lack of memory" if memory else full_disk(folder) or one_line(error)
    return Failure(f"the {who} died: {cause}", retry=True, memory=memory, error=error)


def _memory_is_short() -> bool:
    """Whether this machine uses about as much memory as Ray allows."""
    memory = psutil.virtual_memory()
    allowed = float(os.environ.get(RAY_MEMORY_SETTING, RAY_MEMORY_SHARE))
    return 1 - memory.available / memory.total > allowed - 0.02
