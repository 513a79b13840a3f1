"""What went wrong in a trial, and whether trying again can help."""

from __future__ import annotations

from dataclasses import dataclass, field

from filelock import Timeout

# A full disk of another node, a share that was away, a lock held too long: the next attempt may find it mended.
TRANSIENT = (OSError, Timeout)


@dataclass(frozen=True)
class Failure:
    """Why a task failed, as one line, and whether a retry can help; ``memory`` if Ray ended its worker for want of it.

    ``error`` is what was raised.
    """

    reason: str
    retry: bool
    memory: bool = False
    error: Exception | None = field(default=None, compare=False)


class NothingFeasibleError(RuntimeError):
    """No candidate inside the budget finished. The message says why; the exit code is 3."""


def classify(error: Exception) -> Failure:
    """What ``error``, raised by a trial, means for the search.

    A trial is deterministic, so its own errors (a non-finite loss, too little memory, a bug) come again; only
    errors of the surroundings are worth a retry.
    """
    text = " ".join(str(error).split())
    return Failure(f"{type(error).__name__}: {text}"[:500], isinstance(error, TRANSIENT), error=error)
