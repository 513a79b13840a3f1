"""One driver a study whose database is not in the output folder: other machines may drive it from folders of their own.

The lease of `nas.driver.in_folder` protects a folder. This one is an attribute of the study, so it holds wherever the
database is seen, a server included. The rules are the same: the holder changes it again and again, and whoever waits
counts the seconds without a change by a monotonic clock of its own.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import psutil

from nas.driver.in_folder import KEPT, about_me
from nas.driver.interruption import interrupt_main_thread
from search_spaces.errors import InputError
from trials.storage import lease as leases
from trials.storage.redact import redacted_message

log = logging.getLogger(__name__)

KEY = "driver"
SETTLED_SECONDS = 2.0  # after two drivers have written at once, both know by then who was last


class Attributes(Protocol):
    """What a study keeps, by name."""

    def recall(self, key: str) -> Any: ...
    def remember(self, key: str, value: Any) -> None: ...


@contextmanager
def only_driver_of(study: Attributes, name: str, announce: Callable[[str], None]) -> Iterator[None]:
    """Drive ``study`` alone during the block, as `nas.driver.in_folder.only_driver` does by its folder.

    Raises InputError when another driver is alive, and when the lease is lost.
    """
    own = {**about_me(), "token": uuid.uuid4().hex}
    _take(study, name, own, announce)
    ended, lost = threading.Event(), list[str]()
    beating = threading.Thread(target=_beat, args=(study, own, ended, lost), name="driver", daemon=True)
    beating.start()
    try:
        yield
    except KeyboardInterrupt as error:
        if lost:
            raise InputError(f"study {name!r}: this search has ended, because {lost[0]}; {KEPT}") from error
        raise
    finally:
        ended.set()
        beating.join(timeout=leases.BEAT_SECONDS)


def _take(study: Attributes, name: str, own: dict[str, Any], announce: Callable[[str], None]) -> None:
    known = study.recall(KEY)
    if known and not known.get("ended") and not _is_dead(known, own):
        announce(
            f"study {name}: {_who(known)} may be running it; this search takes over in {leases.LEASE_SECONDS:.0f} s"
        )
        began = time.monotonic()
        while time.monotonic() - began < leases.LEASE_SECONDS:
            time.sleep(min(1.0, leases.BEAT_SECONDS))
            if (now := study.recall(KEY)) != known:
                known = now
                break
        else:
            announce(f"study {name}: {_who(known)} shows no sign of life; this search takes over")
            known = None
        if known and not known.get("ended"):
            raise InputError(_refusal(name, known))
    study.remember(KEY, own)
    time.sleep(SETTLED_SECONDS)
    if (now := study.recall(KEY))["token"] != own["token"]:
        raise InputError(_refusal(name, now))


def _beat(study: Attributes, own: dict[str, Any], ended: threading.Event, lost: list[str]) -> None:
    """Show signs of life until ``ended``. Interrupt the driver when somebody else has the study."""
    last, beats = time.monotonic(), 0
    while not ended.wait(leases.BEAT_SECONDS):
        try:
            known = study.recall(KEY)
            if known["token"] != own["token"]:
                lost.append(f"{_who(known)} runs the study")
                break
            study.remember(KEY, {**own, "beats": (beats := beats + 1)})
            last = time.monotonic()
        except Exception as error:  # whatever a database raises: the driver hears of it when it writes
            if time.monotonic() - last > leases.LEASE_SECONDS:
                lost.append(
                    f"the database did not answer for {leases.LEASE_SECONDS:.0f} s ({redacted_message(error, 100)})"
                )
                break
    else:
        _leave(study, own)
        return
    interrupt_main_thread()


def _leave(study: Attributes, own: dict[str, Any]) -> None:
    try:
        if study.recall(KEY)["token"] == own["token"]:
            study.remember(KEY, {**own, "ended": True})
    except Exception as error:  # the search ends because of it; another one will find that this process is no more
        log.info("the study does not know that this search has ended: %s", redacted_message(error, 100))


def _is_dead(known: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, and is no more."""
    here = (known.get("host"), known.get("namespace")) == (own["host"], own["namespace"])
    if not here:
        return False
    try:
        return bool(psutil.Process(int(known["pid"])).create_time() != known["started"])
    except psutil.NoSuchProcess:
        return True


def _who(known: dict[str, Any]) -> str:
    return f"process {known.get('pid')} on {known.get('host')}, since {known.get('since')}"


def _refusal(name: str, known: dict[str, Any]) -> str:
    return f"study {name!r}: another search is running it, {_who(known)}; wait for it, or give another --study"
