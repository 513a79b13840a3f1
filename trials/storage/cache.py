"""A content-addressed cache shared by trials. Each entry is built once, by one process, and appears atomically."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trials.storage.durable import damage, file_sha256, sweep, write_sealed
from trials.storage.lease import held
from trials.storage.node_digests import sha256_on_node

__all__ = ["Cache", "digest", "file_sha256"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

log = logging.getLogger(__name__)


def digest(*parts: str | bytes | int | float) -> str:
    """32 hex digits that depend on the type, value, number and order of ``parts``.

    Every part is hashed after its type and length, so that ("ab", "c") and ("a", "bc") differ, and 1 and "1" too.
    """
    hashed = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(f"{type(part).__name__}:{len(content)}:".encode())
        hashed.update(content)
    return hashed.hexdigest()[:32]


@dataclass(frozen=True)
class Cache:
    """Folders ``<root>/<kind>/<key>``, each with a manifest of its files' sizes and sha256.

    A folder appears by rename, after all of its files are on disk. Its content never changes: readers must not write
    there. `build` and `has` check it. A large file is read for that once on each node (`sha256_on_node`).
    """

    root: Path

    def build(self, kind: str, key: str, writer: Callable[[Path], None]) -> Path:
        """The folder for ``key``. If it is missing or damaged, ``writer(empty_folder)`` builds it.

        One process at a time builds a key; other processes wait for it, or for its death. When ``writer`` raises,
        nothing is left behind and the error is passed on.
        """
        folder = self._folder(kind, key)
        if damage(folder, sha256_on_node) is None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with held(folder.with_name(f".{folder.name}.lease"), f"{folder} in hand"):
            problem = damage(folder, sha256_on_node)  # another process may have built it while this one waited
            if problem is not None:
                if folder.exists():
                    log.warning("cache entry %s is damaged (%s) and is built again", folder, problem)
                sweep(folder)
                write_sealed(folder, writer, sha256_on_node)
        return folder

    def has(self, kind: str, key: str) -> bool:
        """Whether the folder for ``key`` exists and is undamaged."""
        return damage(self._folder(kind, key), sha256_on_node) is None

    def _folder(self, kind: str, key: str) -> Path:
        for name in (kind, key):
            if not NAME.fullmatch(name):
                raise ValueError(f"cache name {name!r}: only letters, digits, '.', '_' and '-' are allowed")
        return self.root / kind / key
