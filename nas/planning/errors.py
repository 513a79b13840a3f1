"""Failures of tasks, and whether a retry can help."""

from __future__ import annotations

from dataclasses import dataclass, field

from filelock import Timeout

# Examples are a full disk of a node, a network share that is away, or a lock held too long. A retry may succeed.
TRANSIENT = (OSError, Timeout)


@dataclass(frozen=True)
class Failure:
    """A failed task: the ``reason`` in one line, and whether a ``retry`` can help.

    ``memory`` is True when Ray ended the worker for lack of memory. ``error`` is the exception.
    """

    reason: str
    retry: bool
    memory: bool = False
    error: Exception | None = field(default=None, compare=False)


class NothingFeasibleError(RuntimeError):
    """No candidate inside the budget is complete. The message gives the reasons. The exit code is 3."""


def classify(error: Exception) -> Failure:
    """The failure for an ``error`` that a trial has raised.

    A trial is deterministic, so its own errors (a non-finite loss, too little memory, a bug) would occur again. Only
    errors of its surroundings (`TRANSIENT`) are retried.
    """
    text = " ".join(str(error).split())
    return Failure(f"{type(error).__name__}: {text}"[:500], isinstance(error, TRANSIENT), error=error)
