"""The place of one worker, and what can be done to its process."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.planning.errors import too_little_memory
from nas.running.worker import About
from search_spaces.errors import named, one_line

# What helps when a worker cannot be started.
START_HELP = "Ray's logs (/tmp/ray/session_latest/logs, or ray logs) tell more; the same command continues"


@dataclass(eq=False)
class Slot:
    """The place of one worker. Times are by the monotonic clock, in seconds.

    ``worker`` is None while the slot waits until ``resume`` to start one. ``answer`` is the call of `Worker.free` whose
    result is awaited: the worker starts, or ends a task. ``task`` has the worker. ``problem`` says why there is none.
    """

    name: str = ""
    worker: Any = None
    answer: Any = None
    about: About | None = None
    task: str = ""
    problem: str = ""
    failures: int = 0
    resume: float = 0.0
    since: float = 0.0  # when the worker was started, lent or became free
    hung: str = ""  # why the worker was ended while it had a task
    pulse: Any = None
    beat: float = 0.0  # of the last pulse that was asked for
    moved: float = 0.0  # when the worker last used its processor
    seconds: float = 0.0  # of its processor, then; 0 until its process has answered

    @property
    def ready(self) -> bool:
        """Whether the worker has started, and is free or has a task."""
        return self.about is not None and self.worker is not None

    @property
    def free(self) -> bool:
        """Whether the worker can be lent."""
        return self.ready and self.answer is None and not self.task


def end(slot: Slot) -> None:
    """End the worker of ``slot``, if it has one."""
    if slot.worker is not None:
        ray.kill(slot.worker)
    slot.worker = slot.answer = slot.pulse = slot.about = None


def is_done(call: Any) -> bool:
    """Whether the result of a remote ``call`` is there."""
    return bool(ray.wait([call], timeout=0)[0])


def kill_process(slot: Slot) -> None:
    """Kill the process of ``slot``. A process that stands still does not hear `ray.kill`."""
    assert slot.about is not None, "only a worker that has started has a pulse"
    there = NodeAffinitySchedulingStrategy(slot.about.node, soft=False)
    ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(slot.about.process)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def cannot_import(error: RayError) -> bool:
    """Whether the worker started and failed in its imports. They would fail again on the same node."""
    return isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed)


def problem_of(error: RayError, workers: int) -> str:
    """The cause of a worker that could not be started, and the way out, for the user."""
    if isinstance(error, OutOfMemoryError):
        return too_little_memory(workers)
    if cannot_import(error):
        cause = error.cause if isinstance(error, RayTaskError) else None
        text = named(cause) if cause is not None else str(error).strip().splitlines()[-1]
        return (
            f"a worker cannot import what trials need ({one_line(text)}); install the project in the Python of "
            "Ray on every node; the same command continues"
        )
    return f"a worker cannot be started ({one_line(error)}); {START_HELP}"
