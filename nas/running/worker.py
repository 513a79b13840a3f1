"""The worker: an actor of Ray that runs one task at a time, as far as the next result.

It imports the libraries and loads the teacher once, and every later task reuses them.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from ray import cloudpickle

from nas.planning.errors import explained

PULSE = "pulse"  # the concurrency group of the call that is answered while a task runs


class About(NamedTuple):
    """What a worker says of itself: its ``node`` (Ray's id) and ``address``, its process, and what it computes with.

    ``arithmetic`` is what its losses depend on, such as ``cpu bfloat16`` or ``NVIDIA H200 bfloat16``. ``hardware`` is
    what its times depend on. ``sees`` says whether it sees the output folder.
    """

    node: str
    address: str
    process: int
    arithmetic: str
    hardware: str
    sees: bool


class Worker:
    """One worker process. It runs its task as far as the next result, and only when that result is requested."""

    def __init__(self, device: str, output: str) -> None:
        self._device, self._output = device, output
        self._name, self._folder = "", ""
        self._results: Any = None

    def free(self) -> About:
        """End the present task where it is, import what tasks need, and say what this worker is."""
        if self._results is not None:
            self._results.close()
        self._name, self._results = "", None
        tasks = import_module("nas.running.tasks")  # here, because clients import this file and do not need torch
        context, (arithmetic, hardware) = ray.get_runtime_context(), tasks.kind_of(self._device)
        where = context.get_node_id(), ray.util.get_node_ip_address(), os.getpid()
        return About(*where, arithmetic, hardware, Path(self._output).is_dir())

    def begin(self, name: str, task: bytes, argument: Any, folder: str) -> Any:
        """Begin ``task``, a pickled `Task`, with its ``argument``, and return its first result; see `more`.

        ``folder`` is where the task writes. The worker must be free.
        """
        self._name, self._folder = name, folder
        self._results = cloudpickle.loads(task)(argument)
        return self.more(name)

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

    @ray.method(concurrency_group=PULSE)  # type: ignore[untyped-decorator]
    def pulse(self) -> float:
        """The processor seconds of this process so far. A task that runs does not delay the answer."""
        times = psutil.Process().cpu_times()
        return float(times.user + times.system)
