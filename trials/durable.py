"""Files and folders that are there whole or not at all, whenever the power goes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: temporary sibling, fsync, rename. A crash leaves old or new."""
    temporary = temporary_sibling(path)
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_folder(path: Path, writer: Callable[[Path], None]) -> None:
    """Let ``writer`` fill a temporary sibling of ``path``, then put that in the place of ``path``.

    A crash leaves the old folder, the new one or, between the two renames, none; never part of one.
    """
    temporary, retired = temporary_sibling(path), temporary_sibling(path)
    try:
        temporary.mkdir(parents=True)
        writer(temporary)
        sync_tree(temporary)
        if path.exists():
            os.replace(path, retired)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def temporary_sibling(path: Path) -> Path:
    """A new hidden name beside ``path``; `sweep` finds it by that name."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def sweep(path: Path) -> None:
    """Remove what dead writers of ``path`` left beside it. Only for whoever knows that no writer is alive."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder at and below ``folder``, leaves first."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """fsync one file or folder, so that it outlives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
