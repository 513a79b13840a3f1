"""SIGTERM acts like Ctrl-C: `ray job stop` and batch systems send it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the main thread during the block."""
    previous = signal.signal(signal.SIGTERM, as_ctrl_c)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def as_ctrl_c(number: int, frame: Any) -> None:
    """Do what Ctrl-C does now. asyncio has its own answer to it, so that no task is left with an unread error.

    A shell makes commands behind an & ignore Ctrl-C. SIGTERM ends them all the same.
    """
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:
        raise KeyboardInterrupt
