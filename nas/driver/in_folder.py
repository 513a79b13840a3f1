"""One driver a study, in a folder of its own: a second one would fail the running trials of the first."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import SoftFileLease, Timeout

from nas.driver.interruption import interrupt_main_thread
from search_spaces.errors import InputError
from trials.storage import lease as leases
from trials.storage.durable import from_json, write_file

LEASE, DRIVER = "driver.lease", "driver.json"  # who drives now; who drove last, and since when
KEPT = "what is finished is kept, and the same command continues when no other search runs it"
OURS = (DRIVER, "driver.lock")  # either is in every folder of a study; earlier versions had the second


@contextmanager
def only_driver(folder: Path, study: str, announce: Callable[[str], None]) -> Iterator[None]:
    """Drive the ``study`` in ``folder`` alone during the block. The folder is made if it is missing.

    A driver that has died on this machine is replaced at once. For one on another machine the new driver waits, and
    tells ``announce`` how long. A driver that loses its lease, because its machine stood still for so long that another
    one has taken over, is interrupted.

    Raises InputError when another driver is alive, when the lease is lost, and when the folder is not a study's.
    """
    _make(folder, study)
    lost: list[str] = []

    def stop(reason: str) -> None:
        lost.append(reason)
        interrupt_main_thread()

    own = leases.lease(folder / LEASE, stop)
    _take(own, folder, study, announce)
    try:
        write_file(folder / DRIVER, json.dumps(about_me()).encode())
        yield
    except KeyboardInterrupt as error:
        if lost:
            raise InputError(f"study {study!r}: this search has ended, because {lost[0]}; {KEPT}") from error
        raise
    finally:
        own.release()


def _make(folder: Path, study: str) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in OURS):
            raise InputError(f"study {study!r}: {folder} holds files of something else; give another --study")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder.parent}: {error.strerror} ({folder}); give another folder") from error


def _take(own: SoftFileLease, folder: Path, study: str, announce: Callable[[str], None]) -> None:
    """Acquire the lease of the driver. Raises InputError when its holder is alive."""
    path = folder / LEASE
    try:
        own.acquire(timeout=0)
        return
    except Timeout:
        who = _who(folder)
    except OSError as error:
        raise InputError(f"--output {folder.parent}: {error.strerror} ({path}); give another folder") from error
    if not leases.is_here(path):  # a holder here is alive, or its lease would have been free
        announce(
            f"study {study}: {who} may be running it; this search takes over when {path} does not change within "
            f"{leases.LEASE_SECONDS:.0f} s"
        )
        seen = _changed(path)
        try:
            wait = leases.LEASE_SECONDS + leases.BEAT_SECONDS
            own.acquire(timeout=wait, cancel_check=lambda: _changed(path) not in (seen, None))
            announce(f"study {study}: {who} shows no sign of life; this search takes over")
            return
        except Timeout:
            who = _who(folder)
    raise InputError(
        f"study {study!r}: another search is running it, {who}, in {folder}; wait for it, or give another --study"
    )


def _changed(path: Path) -> tuple[int, int] | None:
    """What changes with every sign of life of the holder of ``path``; None when nobody holds it."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def about_me() -> dict[str, Any]:
    """This process: its machine, its number there and in which namespace, and since when it drives."""
    return {
        "host": socket.gethostname(),
        "namespace": leases.own_namespace(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }


def _who(folder: Path) -> str:
    """The holder of the lease in words, and since when it drives, as its own clock has it."""
    who = leases.holder(folder / LEASE) or "an unknown process"
    try:
        known = from_json((folder / DRIVER).read_bytes())
    except (OSError, ValueError):
        return who
    same = isinstance(known, dict) and who == f"process {known.get('pid')} on {known.get('host')}"
    return f"{who}, since {known.get('since')}" if same else who
