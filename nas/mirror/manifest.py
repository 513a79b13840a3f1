"""What a mirror holds: one document, written after everything that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from nas.mirror.store import Store
from search_spaces.errors import InputError
from trials.storage.durable import from_json

FORMAT = 1  # raise it whenever a manifest holds something else
MANIFEST, OBJECTS = "manifest.json", "objects"
SCORES = "cache/importance"
SHA256 = re.compile(r"[0-9a-f]{64}")


class Entry(NamedTuple):
    """A file: its size in bytes, and the sha256 of its content in hex, which is its name in the store."""

    size: int
    sha256: str


@dataclass(frozen=True, order=True)
class Standing:
    """How far a study is: the ``trials`` and the ``finals`` that have ended. The farther one is the greater."""

    trials: int = 0
    finals: int = 0

    def __str__(self) -> str:
        return f"{self.trials} ended trials and {self.finals} ended finals"


@dataclass(frozen=True)
class Manifest:
    """The content of the mirror of a study.

    ``study_id`` is the study's unique name. ``owner`` names the process that wrote this. ``files`` are paths in the
    output folder. ``database`` is an SQLite file with the study alone; None when the study is on a server.
    """

    study: str
    study_id: str
    owner: str
    standing: Standing
    files: Mapping[str, Entry]
    database: Entry | None

    @property
    def objects(self) -> set[str]:
        """The names of all objects, the sha256 of their content."""
        return {one.sha256 for one in (*self.files.values(), *([self.database] if self.database else []))}

    def to_bytes(self) -> bytes:
        """JSON form."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """The inverse of `to_bytes`. Raises ValueError, KeyError or TypeError for anything else."""
        value = from_json(content)
        if value.pop("format") != FORMAT:
            raise ValueError("another version of this program wrote it")
        files = {name: _entry(one) for name, one in value["files"].items()}
        for name in files:
            _check_name(name, value["study"])
        database = None if value["database"] is None else _entry(value["database"])
        return cls(**{**value, "files": files, "database": database, "standing": Standing(**value["standing"])})


def read_manifest(store: Store, study: str) -> Manifest | None:
    """The manifest of ``study`` in ``store``, the folder of its mirror; None when there is none.

    Raises InputError when it cannot be used.
    """
    content = store.read(MANIFEST)
    if content is None:
        return None
    try:
        found = Manifest.from_bytes(content)
        if found.study != study:
            raise ValueError(f"it is of the study {found.study!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or JSON of something else
        raise InputError(
            f"--mirror {store.url}: its {MANIFEST} cannot be used ({type(error).__name__}: {error}); give another "
            "--mirror or --study, or remove it there to begin anew"
        ) from error
    return found


def _entry(value: Any) -> Entry:
    size, sha256 = value
    if not isinstance(size, int) or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise ValueError(f"{value!r} is no size and sha256")
    return Entry(size, sha256)


def _check_name(name: str, study: str) -> None:
    """A manifest names files of its study and scores in the cache, and nothing else on the machine that reads it."""
    path = PurePosixPath(name)
    own = path.parts[:1] == (study,) or path.is_relative_to(SCORES)
    if not own or len(path.parts) < 2 or ".." in path.parts or path.is_absolute() or not name.isprintable():
        raise ValueError(f"{name!r} is no file of the study")
