"""Connects a search to Ray: to an existing cluster, or to a local Ray that lives as long as the search."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import psutil

# These switch off Tune's own snapshots, loggers and signal handler. The study is the only state.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")  # trials that start at the same time; its default is one
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the record of a trial has the reason
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths start at the folder of the command
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from nas.cluster.nodes import machine_now, nodes_to_come
from nas.cluster.signals import as_ctrl_c, sigterm_as_ctrl_c
from nas.cluster.watch import Watch
from nas.planning.machine import Machine
from nas.planning.settings import SearchSettings
from search_spaces.errors import InputError
from trials.storage.redact import redacted_message

logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # it lists the trials that failed once more

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

    Yields the nodes. At the end a local Ray is shut down; a cluster keeps running. SIGTERM (``ray job stop``, a
    batch system) acts like Ctrl-C, from the start on. Raises InputError when no cluster answers, when a local Ray does
    not start, and when Ray dies.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    with sigterm_as_ctrl_c(), Watch() as watch, _connection(address):
        watch.start(address == "local")
        try:
            yield machine_now() if address == "local" else replace(machine_now(nodes_to_come()), grows=True)
        except BaseException as error:
            if watch.explains(error):
                raise InputError(watch.message) from error
            raise
        finally:
            watch.closing.set()


@contextmanager
def _connection(address: str) -> Iterator[None]:
    """Connect to Ray for the block. Afterwards, whatever ends it, every process of a local Ray has ended.

    Ray gives its raylet a second. What that has not ended by then, or what belongs to a Ray that was interrupted at its
    start, would stay for half a minute.
    """
    others = set(psutil.Process().children())
    try:
        _connect(address)
        yield
    finally:
        own = [one for one in psutil.Process().children() if one not in others]
        own += [descendant for one in own for descendant in _descendants(one)]
        ray.shutdown()
        for process in own:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _connect(address: str) -> None:
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    theirs: dict[str, Any] = {"runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    local = address == "local"
    try:
        # The workers of a local Ray inherit its environment. With a runtime_env, Ray could not use its prestarted ones.
        with _environment(WORKER_ENVIRONMENT if local else {}):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **(own if local else theirs))
        signal.signal(signal.SIGTERM, as_ctrl_c)  # Ray has put its own in place
    except SystemExit:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from None
    except Exception as error:  # some that Ray raises are of no narrower class
        raise InputError(_does_not_start(error) if local else _does_not_answer(address, error)) from error


def _does_not_answer(address: str, error: Exception) -> str:
    return (
        f"--address {address!r}: no Ray cluster answers there ({redacted_message(error, 150)}); "
        "give HOST:6379 of the head node, or leave --address out to run on this machine"
    )


def _does_not_start(error: Exception) -> str:
    text = redacted_message(error)
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")  # nosec B108  # only named in a message
    if "AF_UNIX" in text:
        return f"{name} {folder!r}: too long for the sockets of Ray; set RAY_TMPDIR to a short folder such as /tmp"
    if "timed out during startup" in text:
        return "Ray did not start within 30 s, as on a machine that is very busy; give the same command again"
    return f"Ray does not start on this machine: {text}; its logs in {folder}/ray/session_latest/logs tell more"


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
