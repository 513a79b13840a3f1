"""Failures of tasks: what caused them, whether a retry can help, and when a search is hopeless."""

from __future__ import annotations

import errno
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from nas.planning.redact import redacted_line
from search_spaces.errors import InputError, one_line

# Examples are a full disk of a node, a network share that is away, or a lock held too long. A retry may succeed.
TRANSIENT = (OSError, Timeout)
PAUSES = (1.0, 4.0, 16.0)  # seconds before each retry; a neighbour that takes the memory for a while is gone by then
TRIES = len(PAUSES) + 1
LONGEST_REASON = 500  # characters
ALIKE = 3  # so many failures of one kind, and no success, end a search

# safetensors, torch and SQLite raise errors of their own when they cannot write. Only their text says so.
FULL_DISK = re.compile(
    "no space left on device|disk quota exceeded|os error 28|database or disk is full"
    "|PytorchStreamWriter failed writing|inline_container.* unexpected pos",
    re.IGNORECASE,
)
NUMBER = re.compile(r"\b[0-9a-f]{16,}\b|\d+")  # or an identifier of Ray
LITTLE_SPACE = 16 * 2**20  # bytes; a disk with less is as good as full for files of weights


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


class NoWorkerError(InputError):
    """There is no worker for a task, and there will be none soon. The message names the cause and the way out."""


class AlikeFailures:
    """Counts failures by kind until something succeeds. Reasons that differ only in numbers are of one kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.reason = ""  # the last of the first kind that was counted `ALIKE` times without a success

    def failed(self, reason: str) -> None:
        """Count one failure."""
        kind = NUMBER.sub("#", reason)
        self._counts[kind] += 1
        if self._counts[kind] >= ALIKE and not self.reason:
            self.reason = reason

    def succeeded(self) -> None:
        """Forget all failures."""
        self._counts.clear()
        self.reason = ""


def classify(error: Exception) -> Failure:
    """The failure for an ``error`` that a trial has raised.

    A trial is deterministic, so its own errors (a non-finite loss, too little memory, a bug) would occur again. Only
    errors of its surroundings (`TRANSIENT`) are retried.
    """
    return Failure(redacted_line(error, LONGEST_REASON), isinstance(error, TRANSIENT), error=error)


def explained(error: Exception, folder: str) -> Exception:
    """``error``, or an OSError in its place that names the full disk behind it. ``folder`` is where the task writes.

    Call this in the process that wrote: another node may have another disk.
    """
    if isinstance(error, InputError):
        return error
    place = str(error.filename or folder) if isinstance(error, OSError) else folder
    told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = told or FULL_DISK.search(str(error)) is not None
    problem = free_space(place) or free_space(folder) if told else full_disk(folder)
    return OSError(errno.ENOSPC, f"{one_line(error)}; {problem}") if problem else error


def full_disk(folder: str) -> str:
    """What `free_space` says when the disk of ``folder`` is as good as full, otherwise an empty string."""
    return free_space(folder, LITTLE_SPACE)


def free_space(folder: str, most: float = float("inf")) -> str:
    """One line with the free bytes on the disk of ``folder``; empty for more than ``most`` or an unknown folder."""
    path = Path(folder)
    if not folder or not path.is_absolute():
        return ""
    try:
        free = shutil.disk_usage(next(one for one in (path, *path.parents) if one.exists())).free
    except OSError:
        return ""
    return f"the disk of {folder} has {free:,} bytes free; free some" if free <= most else ""


def too_little_memory(workers: int) -> str:
    """The message for a user whose machine is too small for so many ``workers``."""
    fewer = "give fewer workers or free memory" if workers > 1 else "free memory, or take a machine with more"
    return (
        f"--workers {workers}: Ray ended a worker for lack of memory {TRIES} times; {fewer}; "
        "finished trials are kept, and the same command continues"
    )


def alike(what: str, reason: str) -> str:
    """The message for a search whose first ``what`` all failed for one ``reason``."""
    return (
        f"{ALIKE} {what} failed for the same reason, and none succeeded: {reason}; mend the cause; the same command "
        "then goes on with the others, and another --study starts anew"
    )


def alike_by_surroundings(what: str, reason: str) -> str:
    """The message for a search in which ``what`` fail for a ``reason`` that is none of their own."""
    return (
        f"{ALIKE} {what} failed by their surroundings, each {TRIES} times: {reason}; mend the cause; "
        "the same command tries them again"
    )
