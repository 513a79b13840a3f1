"""Digests of large files, computed once on a node: 8 GB of streams are not read again by every worker.

A digest is noted in the temporary folder of the node, under the identity of the file: device, inode, size, and the
times when its content and its inode changed. Whoever writes to the file changes these. What a disk changes by itself
does not show, so a note counts for a day only.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from trials.storage.durable import file_sha256, write_file

SMALL_BYTES = 2**20  # smaller files are read each time
COUNTS_SECONDS = 86_400.0
SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_on_node(path: Path) -> str:
    """The sha256 of a file in hex. A large file is read by one process of this node, and the others wait for it."""
    identity = _identity(path)
    if path.stat().st_size < SMALL_BYTES or (folder := _folder()) is None:
        return file_sha256(path)
    note = folder / identity
    if known := _noted(note):
        return known
    with FileLock(f"{note}.lock"):
        if known := _noted(note):
            return known
        found = file_sha256(path)
        if _identity(path) == identity:  # nobody has written to it meanwhile
            write_file(note, found.encode())
            _sweep(folder)
    return found


def _identity(path: Path) -> str:
    status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return hashlib.sha256(repr((status.st_dev, status.st_ino, status.st_size, *times)).encode()).hexdigest()


def _noted(note: Path) -> str | None:
    try:
        if time.time() - note.stat().st_mtime > COUNTS_SECONDS:
            return None
        found = note.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return found if SHA256.fullmatch(found) else None


def _sweep(folder: Path) -> None:
    """Remove the notes, and their locks, that count no longer."""
    for one in folder.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - one.stat().st_mtime > COUNTS_SECONDS:
                one.unlink()


def _folder() -> Path | None:
    """The folder of the notes, which nobody else can write to; None where there is no such folder."""
    folder = Path(tempfile.gettempdir()) / f"llm-nas-digests-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:  # a temporary folder that is full or read-only: files are read each time
        return None
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if own and os.access(folder, os.W_OK) else None
