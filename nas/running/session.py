"""Connects a search to Ray: to an existing cluster, or to a local Ray that lives as long as the search."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# These switch off Tune's own snapshots, loggers and signal handler. The study is the only state.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths start at the folder of the command
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from nas.planning.machine import Machine
from nas.planning.settings import SearchSettings
from search_spaces.errors import InputError

# By default, glibc returns freed large blocks to the system, and the next training step has to fault them in page by
# page. For a student of 100M parameters this is 2.5 million page faults and 40 % of the time of a step. These variables
# keep the blocks in the heap. They allow only the main heap, because trials run in other threads, and the heaps of
# other threads hold at most 64 MiB.
WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
}
OBJECT_STORE_BYTES = 100 * 2**20  # results are small; Ray's default is 30 % of the memory


@contextmanager
def ray_session(settings: SearchSettings) -> Iterator[Machine]:
    """Connect to the Ray cluster at ``--address`` or RAY_ADDRESS, or start a local Ray if neither is given.

    Yields the resources. At the end a local Ray is shut down; a cluster keeps running. SIGTERM (``ray job stop``, a
    batch system) acts like Ctrl-C. Raises InputError when no cluster answers.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    theirs: dict[str, Any] = {"runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    local = address == "local"
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    try:
        # The workers of a local Ray inherit its environment. With a runtime_env, Ray could not use its prestarted ones.
        with _environment(WORKER_ENVIRONMENT if local else {}):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **(own if local else theirs))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--address {address!r}: no Ray cluster answers there ({' '.join(str(error).split())[:150]}); "
            "give HOST:6379 of the head node, or leave --address out to run on this machine"
        ) from error
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield _machine()
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during the block."""
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
