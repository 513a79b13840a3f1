"""Ray for the time of a search: a cluster that is there already, or one of this process alone."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Tune's own snapshots, loggers and signal handler are not wanted: the study is the only state.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # --model ./teacher is relative to where the command was given
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from nas.planning.machine import Machine
from nas.planning.settings import SearchSettings
from search_spaces.errors import InputError

# glibc hands large blocks back to the system when they are freed, and the next step of training asks for them anew,
# page by page: 2.5 million faults a step, 40 % of its time for a student of 100M parameters. So they stay in the heap,
# and in the main one: those of other threads, in which trials run, hold 64 MiB at most.
WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
}
OBJECT_STORE_BYTES = 100 * 2**20  # results are a few numbers; the default would be 30 % of the memory


@contextmanager
def ray_session(settings: SearchSettings) -> Iterator[Machine]:
    """A Ray to run on: the cluster at ``--address`` or RAY_ADDRESS, else one of this process alone.

    Yields what it has. A cluster is left running, a Ray of our own is shut down with the block. SIGTERM (``ray
    job stop``, a batch system) is treated as Ctrl-C. Raises InputError when no cluster answers.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    theirs: dict[str, Any] = {"runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    local = address == "local"
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    try:
        # A Ray of our own hands its environment on, and processes that it has in stock are used as they are.
        with _environment(WORKER_ENVIRONMENT if local else {}):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **(own if local else theirs))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--address {address!r}: no Ray cluster answers there ({' '.join(str(error).split())[:150]}); "
            "give HOST:6379 of its head, or leave it out to run on this machine"
        ) from error
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield _machine()
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the time of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _machine() -> Machine:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    total = ray.cluster_resources()
    smallest = min(count for count in cpus if count) if any(cpus) else 0
    return Machine(sum(cpus), float(total.get("GPU", 0)), int(total.get("memory", 0)), smallest)
