"""Leases: one process at a time holds a path, among all machines that see the folder.

A lease is a file that names its holder. The holder creates it exclusively, touches it every `BEAT_SECONDS`, and removes
it at the end. No lease relies on ``flock``: some network mounts refuse it, and others grant it on each machine apart.

A holder that died on this machine is known by its process and its boot. Any other holder counts as dead when its file
has not changed for `LEASE_SECONDS` of the waiting process' own monotonic clock. Clocks may differ and jump.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

LEASE_SECONDS = 60.0  # longer than a mount may hide a change; NFS does so for up to 60 s, but not from who opens a file
BEAT_SECONDS = 10.0
POLL_SECONDS = 0.1

# filelock adds the namespace of a process to the name of its machine, except for the first one, whose number is fixed.
NAMESPACE, FIRST_NAMESPACE = "?pidns-", 0xEFFFFFFC

log = logging.getLogger(__name__)


def lease(path: Path, on_lost: Callable[[str], None] | None = None) -> SoftFileLease:
    """The lease at ``path``, not yet held. Its folder must exist.

    ``on_lost`` is called, from another thread, when somebody else has taken or removed the lease, or when it could not
    be touched for `LEASE_SECONDS`. It gets the reason.
    """

    def tell(loss: LeaseCompromise) -> None:
        reasons = {
            "marker-missing": f"{path} was removed",
            "owner-changed": f"{holder(path) or 'another process'} holds {path}",
            "refresh-failed": f"{path} could not be written to for {LEASE_SECONDS:.0f} s",
        }
        if on_lost is not None:
            on_lost(reasons[loss.reason])

    return SoftFileLease(
        path,
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=BEAT_SECONDS,
        poll_interval=POLL_SECONDS,
        on_compromise=tell,
    )


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lease at ``path`` during the block, and wait for it as long as it takes.

    A waiting process logs who holds it, and ``what`` for. A holder that is stopped for `LEASE_SECONDS` loses its lease:
    whatever the block does, two processes must be able to do it at once without harm.
    """
    own = lease(path)
    try:
        own.acquire(timeout=0)
    except Timeout:
        log.info("waiting for %s, which has %s", holder(path) or "another process", what)
        _wait(own, path)
    try:
        yield
    finally:
        own.release()


def holder(path: Path) -> str:
    """Who holds the lease at ``path``, in words; empty if nobody does."""
    owner = SoftFileLease(path).owner
    return "" if owner is None else f"process {owner.pid} on {owner.hostname.partition(NAMESPACE)[0]}"


def is_here(path: Path) -> bool:
    """Whether the holder of the lease at ``path`` is a process of this machine, as this process sees it.

    Containers may share the name of their machine. Each has process numbers of its own.
    """
    owner = SoftFileLease(path).owner
    if owner is None:
        return False
    host, _, namespace = owner.hostname.partition(NAMESPACE)
    return host == socket.gethostname() and (int(namespace, 16) if namespace else FIRST_NAMESPACE) == own_namespace()


def own_namespace() -> int:
    """The number of the namespace in which the numbers of processes are counted here."""
    there = Path("/proc/self/ns/pid")
    return there.stat().st_ino if there.exists() else FIRST_NAMESPACE


def _wait(own: SoftFileLease, path: Path) -> None:
    while True:
        before = _empty(path)
        try:
            own.acquire(timeout=LEASE_SECONDS)
            return
        except Timeout:
            if before and before == _empty(path):  # its writer was killed between two system calls
                path.unlink(missing_ok=True)


def _empty(path: Path) -> tuple[int, int] | None:
    """What identifies an empty lease file; None for any other."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return None if found.st_size else (found.st_ino, found.st_mtime_ns)
