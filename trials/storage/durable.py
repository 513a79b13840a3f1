"""Writes files and folders atomically, so that they survive a power loss, and verifies them by checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

from trials.storage.lease import lease

MANIFEST, LEASE = "manifest.json", ".lease"


def write_file(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: temporary sibling, fsync, rename. A crash leaves the old file or the new one."""
    temporary = temporary_sibling(path)
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def create_file(path: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` create a temporary sibling of ``path``, then rename it to ``path``. Only one process may do so.

    For databases: their libraries take a file that is half made for a damaged one. What ``make`` or an earlier process
    leaves beside the file, such as a journal, is removed.
    """
    sweep(path)
    try:
        temporary = temporary_sibling(path)
        make(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        sweep(path)
    sync(path.parent)


def write_folder(path: Path, writer: Callable[[Path], None]) -> None:
    """Let ``writer`` fill a temporary sibling of ``path``, then rename it to ``path``.

    A crash leaves the old folder, the new one or, between the two renames, none. It never leaves part of one. The
    temporary folder of a killed process is removed when ``path`` is written again.
    """
    temporary, retired = temporary_sibling(path), temporary_sibling(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_dead(path)
    with _locked(temporary):  # locked before it exists, so that `sweep_dead` never sees it unlocked
        try:
            temporary.mkdir()
            writer(temporary)
            sync_tree(temporary)
            if path.exists():
                os.replace(path, retired)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(retired, ignore_errors=True)


def write_sealed(path: Path, writer: Callable[[Path], None], sha256: Callable[[Path], str] | None = None) -> None:
    """As `write_folder`, with a manifest of every file's size and sha256, which `damage` checks later.

    ``sha256`` computes that of a file, by default `file_sha256`. All files get the mode of a new file under the umask.
    safetensors writes its files readable by their owner only.
    """

    def fill(folder: Path) -> None:
        writer(folder)
        manifest = folder / MANIFEST
        manifest.touch()
        for _, file in _files(folder):
            if _mode(file) != _mode(manifest):
                file.chmod(_mode(manifest))
        files = {name: [file.stat().st_size, (sha256 or file_sha256)(file)] for name, file in _files(folder)}
        manifest.write_text(json.dumps(files, indent=1, sort_keys=True))

    write_folder(path, fill)


def damage(folder: Path, sha256: Callable[[Path], str] | None = None) -> str | None:
    """The first problem of a sealed folder, or None if it is exactly as written.

    ``sha256`` computes that of a file. By default this is `file_sha256`, which reads all files.
    """
    try:
        manifest: dict[str, tuple[int, str]] = from_json((folder / MANIFEST).read_bytes())
        present = dict(_files(folder))
        if set(present) != set(manifest):
            return f"files missing or added: {sorted(set(present) ^ set(manifest))}"
        for name, (size, checksum) in manifest.items():
            if present[name].is_symlink():
                return f"{name} is a link"
            if present[name].stat().st_size != size or (sha256 or file_sha256)(present[name]) != checksum:
                return f"{name} differs from its checksum"
    except (OSError, ValueError, TypeError, AttributeError) as error:  # JSON that is not a manifest
        return f"{type(error).__name__}: {error}"
    return None


def from_json(content: str | bytes) -> Any:
    """The value of ``content``. Raises ValueError when it is not JSON, also when it is nested too deep."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("lists or objects too deep in each other") from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_sibling(path: Path) -> Path:
    """A new hidden path beside ``path``. `sweep` finds it by its name."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def sweep(path: Path) -> None:
    """Remove the temporary files of dead writers of ``path``. Call this only if no writer of ``path`` is alive."""
    for left in path.parent.glob(f".{path.name}.*.tmp*"):  # with the lease of each
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sweep_dead(path: Path) -> None:
    """Remove the temporary folders of dead writers of ``path``; those of living writers stay.

    A writer has a lease of its temporary folder. What a writer on another machine has left stays until `sweep`.
    """
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        try:
            with _locked(left):
                shutil.rmtree(left, ignore_errors=True)
        except Timeout:
            continue


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lease of ``folder``, a file beside it. Raises `filelock.Timeout` when another process holds it."""
    own = lease(folder.with_name(folder.name + LEASE))
    own.acquire(timeout=0)
    try:
        yield
    finally:
        own.release()


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder at and below ``folder``, leaves first."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """fsync one file or folder, so that it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent) / name
            if path != folder / MANIFEST:
                yield path.relative_to(folder).as_posix(), path
