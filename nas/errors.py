"""What went wrong in a trial, and whether trying again can help."""

from __future__ import annotations

from dataclasses import dataclass

from filelock import Timeout

# A full disk of another node, a share that was away, a lock held too long: the next attempt may find it mended.
TRANSIENT = (OSError, Timeout)


@dataclass(frozen=True)
class Failure:
    """Why a trial failed, as one line, and whether a retry can help."""

    reason: str
    retry: bool


class NothingFeasibleError(RuntimeError):
    """No candidate inside the budget finished. The message says why; the exit code is 3."""


def classify(error: Exception) -> Failure:
    """What ``error``, raised by a trial, means for the search.

    A trial is deterministic, so its own errors (a non-finite loss, too little memory, a bug) come again; only
    errors of the surroundings are worth a retry. A worker that dies raises nothing here: Ray restarts it.
    """
    text = " ".join(str(error).split())
    return Failure(f"{type(error).__name__}: {text}"[:500], isinstance(error, TRANSIENT))
