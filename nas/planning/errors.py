"""Failures of tasks: what caused them, whether a retry can help, and when a search is hopeless."""

from __future__ import annotations

import errno
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from search_spaces.errors import InputError, lacks_memory, one_line
from trials.storage.disk import free_bytes, is_full, mount_of, place_of, root_of_full
from trials.storage.redact import redacted_line

# Examples are a full disk of a node, a network share that is away, or a lock held too long. A retry may succeed.
TRANSIENT = (OSError, Timeout)
PAUSES = (1.0, 4.0, 16.0)  # seconds before each retry; a neighbour that takes the memory for a while is gone by then
TRIES = len(PAUSES) + 1
LONGEST_REASON = 500  # characters
ALIKE = 3  # so many failures of one kind, and no success, end a search

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
    text = redacted_line(error, LONGEST_REASON)
    if lacks_memory(error) and not text.startswith("OutOfMemory"):
        text = f"OutOfMemory: {text}"
    return Failure(text, isinstance(error, TRANSIENT), error=error)


def explained(error: Exception, folder: str) -> Exception:
    """``error``, or an OSError in its place that names the full disk behind it. ``folder`` is where the task writes.

    Call this in the process that wrote: another node may have another disk.
    """
    if isinstance(error, InputError):
        return error
    place = place_of(root_of_full(error))
    inside = place is None or (folder and place.is_relative_to(folder))
    problem = (not inside and free_space(str(place))) or free_space(folder) if is_full(error) else full_disk(folder)
    return OSError(errno.ENOSPC, f"{_without_number(error)}; {problem}") if problem else error


@contextmanager
def full_disk_named(*folders: Path, after: str) -> Iterator[None]:
    """Turn an error of the block that tells of a full disk into an InputError.

    It names the disk with the least space among those of ``folders`` and the temporary folder, unless the error says
    which one it is. ``after`` ends the message: what is needed, and what is kept.
    """
    try:
        yield
    except InputError as error:
        if not is_full(error):
            raise
        raise InputError(f"{error}; {after}") from error
    except Exception as error:
        full = root_of_full(error)
        if full is None:
            raise
        place = place_of(full) or min([*folders, Path(tempfile.gettempdir())], key=free_bytes)
        space = free_space(str(place.absolute()))
        raise InputError(f"{_without_number(error)}; {space}; {after}") from error


def _without_number(error: BaseException) -> str:
    """The text of the root of ``error``, without ``[Errno 28]`` at its start: whoever wraps it puts that there anew."""
    return re.sub(r"^\[Errno \d+\] ", "", one_line(root_of_full(error) or error))


def root_of(error: BaseException) -> BaseException:
    """The first cause of ``error``. Optuna, for instance, hides "database is locked" behind a guess of its own."""
    return error if error.__cause__ is None else root_of(error.__cause__)


def full_disk(folder: str) -> str:
    """What `free_space` says when the disk of ``folder`` is as good as full, otherwise an empty string."""
    return free_space(folder, LITTLE_SPACE)


def free_space(folder: str, most: float = float("inf")) -> str:
    """One line with the free bytes on the disk of ``folder``; empty for more than ``most`` or an unknown folder."""
    path = Path(folder)
    if not folder or not path.is_absolute():
        return ""
    try:
        free = free_bytes(path)
    except OSError:
        return ""
    return f"the disk at {mount_of(path)} (of {folder}) has {free:,} bytes free; free some" if free <= most else ""


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
