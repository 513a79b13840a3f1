"""Watches over Ray: a search whose Ray has died ends with one line, and not after a minute with a message of Ray's."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

import psutil
import ray

from nas.driver.interruption import interrupt_main_thread

RAY_PROCESSES = ("gcs_server", "raylet")  # Ray ends without them
LAST_SECONDS = 10.0  # for the end of a search whose Ray has died; the study can be continued from wherever it stops
LOOK = 1.0  # seconds between two looks
# Ray aborts a process whose head has not answered for so long. A head with fault tolerance may be back by then.
ABORT_SETTING, ABORT_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
PATIENCE = 1 / 2  # of those seconds; the rest is for the end of the search
KEPT = "finished trials are kept, and the same command continues"


class Watch:
    """Watches the Ray that this process is connected to. When it has died, it interrupts this process as Ctrl-C does.

    Some calls to a dead Ray cannot be interrupted: Tune reads its registry of trainables from gcs_server, in C++,
    before every trial. Such a process is ended after `LAST_SECONDS`. ``message`` says what has died, if anything
    has. ``closing`` is set before Ray is shut down, and the block ends after it.
    """

    def __init__(self) -> None:
        self.message = ""
        self.closing = threading.Event()
        self._closed = threading.Event()
        self._look: Callable[[], str] = str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()

    def start(self, local: bool) -> None:
        """Begin to watch. Ray is connected: a ``local`` one, whose processes are children of this one, or a cluster."""
        self._look = _local() if local else _cluster()
        threading.Thread(target=self._run, name="watch over Ray", daemon=True).start()

    def explains(self, error: BaseException) -> bool:
        """Whether the death of Ray is the cause of ``error``."""
        if not isinstance(error, KeyboardInterrupt):
            self.message = self.message or self._look()
        return bool(self.message)

    def _run(self) -> None:
        while not self.closing.wait(LOOK):
            if message := self._look():
                self.message = message
                interrupt_main_thread()
                if not self._closed.wait(LAST_SECONDS):
                    print(f"error: {self.message}", file=sys.stderr, flush=True)
                    os._exit(2)
                return


def _local() -> Callable[[], str]:
    """Says which process of a local Ray has died; an empty string while none has."""
    processes = {one: name for one in psutil.Process().children() if (name := one.name()) in RAY_PROCESSES}

    def look() -> str:
        dead = next((name for process, name in processes.items() if _has_ended(process)), "")
        return f"Ray's process {dead} has died, as when somebody ends it or memory is short; {KEPT}" if dead else ""

    return look


def _cluster() -> Callable[[], str]:
    """Says what of a cluster has not answered for too long: its head, or Ray on the node of this process."""
    own = ray.get_runtime_context().get_node_id()
    node = next(one for one in ray.nodes() if one["NodeID"] == own)
    head = ray.get_runtime_context().gcs_address
    here = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    names = {f"the head of the Ray cluster at {head}": head, f"Ray on this node, at {here}": here}
    patience = PATIENCE * float(os.environ.get(ABORT_SETTING, ABORT_SECONDS))
    return unanswered(names, patience, _answers)


def unanswered(
    names: Mapping[str, str],
    patience: float,
    answers: Callable[[str], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], str]:
    """Says which of the addresses ``names`` has not answered for ``patience`` seconds; an empty string while none."""
    heard = dict.fromkeys(names, clock())

    def look() -> str:
        for name, address in names.items():
            if answers(address):
                heard[name] = clock()
            elif (silent := clock() - heard[name]) >= patience:
                return f"{name} has not answered for {silent:.0f} s; {KEPT}"
        return ""

    return look


def _answers(address: str) -> bool:
    """Whether anybody accepts a connection at ``address``, HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK):
            return True
    except OSError:
        return False


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
