"""Runs jobs on workers, and yields their results in the driver as they come."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from nas.planning.errors import PAUSES, Failure, classify, full_disk
from nas.running.slot import Slot
from nas.running.workers import Workers
from search_spaces.errors import InputError, one_line

log = logging.getLogger(__name__)

# With more of the memory in use than this share, Ray ends processes. The variable replaces the default.
RAY_MEMORY_SETTING, RAY_MEMORY_SHARE = "RAY_memory_usage_threshold", 0.95

Task = Callable[[Any], Iterator[Any]]
"""A task is a function of one argument that returns a generator of results."""


class Job(NamedTuple):
    """A ``task``, pickled, its ``argument``, and the ``folder`` where it writes: a failure names a full disk there."""

    task: bytes
    argument: Any
    folder: str = ""


class Started(NamedTuple):
    """A job has a worker."""


class Retried(NamedTuple):
    """A job failed for ``reason`` and is tried again."""

    reason: str


@dataclass
class _Attempt:
    name: str
    tries: int = 0
    resume: float = 0.0  # by the monotonic clock
    slot: Slot | None = None


def results_of(
    workers: Workers, jobs: Mapping[str, Job], at_once: int | None = None, hardware: str = ""
) -> Generator[tuple[str, Any], None, None]:
    """Run ``jobs`` in their order, and yield (name, what happened): `Started`, each result, `Retried`, or a `Failure`.

    A job is tried up to `TRIES` times when its worker or node dies or hangs, or after an error that a retry can mend
    (`nas.planning.errors.classify`). Between the tries are `PAUSES`. A retry may yield a result again. The `Failure` of
    a job is its last result. A job runs as far as its next result, and only when that is asked for. Those that are left
    when nobody asks any more are ended where they are.

    At most ``at_once`` jobs run at a time. With ``hardware`` (`nas.running.worker.About`) all run on that kind.

    Raises InputError when a job does, and NoWorkerError when there is no worker.
    """
    waiting = deque(_Attempt(name) for name in jobs)
    running: dict[Any, _Attempt] = {}
    try:
        while waiting or running:
            workers.want(min(len(waiting) + len(running), at_once or len(jobs)))
            while workers.has_free() and len(running) < (at_once or len(jobs)) and (attempt := _due(waiting)):
                if (slot := workers.take(attempt.name, hardware)) is None:
                    break
                waiting.remove(attempt)
                attempt.slot, job = slot, jobs[attempt.name]
                begin = slot.worker.begin.options(name=attempt.name)
                running[begin.remote(attempt.name, job.task, job.argument, job.folder)] = attempt
                yield attempt.name, Started()
            for call in workers.wait(list(running)):
                attempt = running.pop(call)
                yield from _heard(workers, attempt, call, jobs[attempt.name], waiting, running)
    finally:
        for attempt in running.values():
            _give(workers, attempt)


def _due(waiting: deque[_Attempt]) -> _Attempt | None:
    now = time.monotonic()
    return next((one for one in waiting if one.resume <= now), None)


def _heard(
    workers: Workers,
    attempt: _Attempt,
    call: Any,
    job: Job,
    waiting: deque[_Attempt],
    running: dict[Any, _Attempt],
) -> Iterator[tuple[str, Any]]:
    """Yield what ``call`` of ``attempt`` brought, and let it go on, end or wait for another try."""
    assert attempt.slot is not None, "it was started"
    try:
        result = ray.get(call)
    except RayError as error:
        hung = attempt.slot.hung
        _give(workers, attempt)
        failure = failure_of(error, job.folder, hung)
        attempt.tries += 1
        if not failure.retry or attempt.tries > len(PAUSES):
            yield attempt.name, failure
            return
        attempt.resume = time.monotonic() + PAUSES[attempt.tries - 1]
        waiting.append(attempt)
        yield attempt.name, Retried(failure.reason)
        return
    if result is None:
        _give(workers, attempt)
        return
    token = object()  # while the result is looked at, the job is among those that are ended if nobody asks for more
    running[token] = attempt
    yield attempt.name, result
    del running[token]
    running[attempt.slot.worker.more.options(name=attempt.name).remote(attempt.name)] = attempt


def _give(workers: Workers, attempt: _Attempt) -> None:
    if attempt.slot is not None:
        workers.give(attempt.slot)
    attempt.slot = None


def failure_of(error: RayError, folder: str, hung: str = "") -> Failure:
    """The `Failure` behind an ``error`` of a call to a worker. Raises InputError when the task did.

    A full disk kills a worker that writes to mapped memory. Ray does not always say why a process died. ``hung`` is the
    reason if the driver has ended it.
    """
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, InputError):
            raise error.cause from None
        return classify(error.cause)
    memory = isinstance(error, OutOfMemoryError) or (isinstance(error, ActorUnavailableError) and _memory_is_short())
    cause = "Ray ended it for lack of memory" if memory else hung or full_disk(folder) or one_line(error)
    return Failure(f"the worker died: {cause}", retry=True, memory=memory, error=error)


def _memory_is_short() -> bool:
    """Whether this machine uses about as much memory as Ray allows."""
    memory = psutil.virtual_memory()
    allowed = float(os.environ.get(RAY_MEMORY_SETTING, RAY_MEMORY_SHARE))
    return 1 - memory.available / memory.total > allowed - 0.02
