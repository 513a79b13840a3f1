"""Calls of a storage that Ctrl-C does not cut."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from optuna.storages import BaseStorage

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def uncut(storage: BaseStorage) -> BaseStorage:
    """``storage``, in an SQLite file, whose calls Ctrl-C and SIGTERM do not cut: they come at the end of a call.

    A statement that is cut holds its lock on the file as long as its traceback lives. Nothing could be written
    meanwhile, so no trial could be queued again.
    """
    for name in (one for one in dir(BaseStorage) if not one.startswith("_")):
        setattr(storage, name, _uncut(getattr(storage, name)))
    return storage


def _uncut(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def whole(*arguments: Any, **named: Any) -> Any:
        with postponed():
            return call(*arguments, **named)

    return whole


@contextmanager
def postponed() -> Iterator[None]:
    """Ctrl-C and SIGTERM come at the end of the block. Python handles signals in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {one: signal.signal(one, lambda number, frame: came.append(number)) for one in SIGNALS}
    try:
        yield
    finally:
        for one, answer in before.items():
            signal.signal(one, signal.SIG_DFL if answer is None else answer)
        if came:
            signal.raise_signal(came[0])
