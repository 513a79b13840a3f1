"""Surveys, finals and readings of test text: fixed lists of tasks, as many at a time as there are workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray import cloudpickle

from nas.planning.errors import Failure
from nas.running.tasks import final_task, latency_task, readings_task, screen_task
from nas.running.workers import Task, Workers, work
from trials.distill.checkpoint import Rung
from trials.evaluate.reading import Reading
from trials.evaluate_on_tests import ReadingSpec
from trials.final import FinalResult, FinalSpec
from trials.trial import TrialSpec

# What is heard of a final: that it was started (None), a reading, its result, or why there is none.
Heard = Rung | FinalResult | Failure | None
Said = TypeVar("Said")


def run_finals(specs: Mapping[str, FinalSpec], workers: Workers, hear: Callable[[str, Heard], None]) -> None:
    """Run all ``specs``, by name, in their order; ``hear`` is called in this thread, with the name.

    A final whose worker or node dies is tried again, from its last checkpoint, and so is one whose surroundings
    failed; its readings are heard once. Raises InputError when a worker does.
    """
    told = set[tuple[str, int]]()

    def once(name: str, heard: Heard) -> None:
        if isinstance(heard, Rung):
            if (name, heard.tokens) in told:  # a second attempt says the same again
                return
            told.add((name, heard.tokens))
        hear(name, heard)

    _run_all(final_task, specs, workers, once)


def run_readings(
    specs: Mapping[str, ReadingSpec],
    workers: Workers,
    hear: Callable[[str, list[Reading] | Failure | None], None],
) -> None:
    """Take the readings of all ``specs``, by name; ``hear`` is called with None at the start of each, then with them.

    Retries and errors are as in `run_finals`.
    """
    _run_all(readings_task, specs, workers, hear)


def run_screens(
    specs: Mapping[str, TrialSpec], workers: Workers, hear: Callable[[str, float | Failure | None], None]
) -> None:
    """Screen all ``specs``, by name; ``hear`` is called with None at the start of each, then with its loss.

    Retries and errors are as in `run_finals`.
    """
    _run_all(screen_task, specs, workers, hear)


def run_timings(
    specs: Mapping[str, TrialSpec], workers: Workers, hear: Callable[[str, float | Failure | None], None]
) -> None:
    """The same for the latencies of ``specs``, in milliseconds of a generated token, one at a time."""
    _run_all(latency_task, specs, workers, hear, at_once=1)


def _run_all(
    task: Task,
    specs: Mapping[str, Any],
    workers: Workers,
    hear: Callable[[str, Said | Failure | None], None],
    at_once: int | None = None,
) -> None:
    pickled, waiting = cloudpickle.dumps(task), deque(specs)

    async def one_by_one() -> None:
        while waiting:
            name = waiting.popleft()
            hear(name, None)
            async for heard in work(workers.pool, f"{task.__name__} {name}", pickled, specs[name]):
                hear(name, heard)

    async def together() -> None:
        await asyncio.gather(*(one_by_one() for _ in range(at_once or workers.count)))

    asyncio.run(together())
