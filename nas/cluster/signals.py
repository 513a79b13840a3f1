"""SIGTERM acts like Ctrl-C: `ray job stop` and batch systems send it. The exit code of both is ours."""

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


def forget_interruption() -> None:
    """Let the exit code of a command stand after a KeyboardInterrupt that it has caught.

    CPython notes a KeyboardInterrupt that leaves an ``exec`` of text, which imports use, as one that nobody catches
    (``_Py_UnhandledKeyboardInterrupt`` in its pythonrun.c). At its end, ``python -m`` would then die of SIGINT. The
    next evaluation of text takes the note back.
    """
    eval("None")  # nosec B307  # a word of our own
