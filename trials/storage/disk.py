"""Disks: which one a folder is on, how much it has left, and how a file gets its space before it is written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)

# safetensors, torch, numpy and SQLite raise errors of their own when they cannot write. Only their text says so.
FULL_DISK = re.compile(
    "no space left on device|disk quota exceeded|os error 28|database or disk is full"
    r"|PytorchStreamWriter failed writing|inline_container.* unexpected pos|\d+ requested and \d+ written",
    re.IGNORECASE,
)


def mount_of(path: Path) -> Path:
    """The folder at which the disk of ``path`` is mounted. The path need not exist yet."""
    found = existing(path)
    while not found.is_mount() and found != found.parent:
        found = found.parent
    return found


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def free_bytes(path: Path) -> int:
    """The bytes that this user may still write to the disk of ``path``. Raises OSError when the disk is gone."""
    return shutil.disk_usage(existing(path)).free


def allocate(path: Path) -> None:
    """Give the file ``path`` all the space of its size. Raises OSError when the disk has less.

    Whoever writes to mapped memory of a file without space is ended by SIGBUS.
    """
    size = path.stat().st_size
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in FULL:
            raise
        text = f"{os.strerror(error.errno)}: {path.name} takes {size:,} bytes"
        raise OSError(error.errno, text, str(path)) from None
    finally:
        os.close(descriptor)


def is_full(error: BaseException | None) -> bool:
    """Whether ``error``, or what caused it, tells of a full disk."""
    return root_of_full(error) is not None


def root_of_full(error: BaseException | None) -> BaseException | None:
    """The first error in the chain of causes of ``error`` that tells of a full disk."""
    found = None
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or FULL_DISK.search(str(error)):
            found = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def place_of(error: BaseException | None) -> Path | None:
    """The file that ``error`` says was written, if it says so. Of two files the second is the copy."""
    if not isinstance(error, OSError):
        return None
    names = [one for one in (error.filename2, error.filename) if isinstance(one, str)]
    return Path(names[0]) if names else None
