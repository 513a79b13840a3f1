"""A folder in an object store, or on any file system that fsspec knows: the only file that talks to one."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from search_spaces.errors import UNCUT, InputError, named
from trials.storage.redact import redacted

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # of this package, by the scheme of a URL
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})  # an object appears whole, or not at all
# A server that is down is noticed in seconds. The mirror has longer pauses of its own.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}}
}
OPTIONS["s3a"] = OPTIONS["s3"]
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://\S+")


class Store:
    """The folder ``url``. Names in it are relative and have ``/`` between their parts.

    Methods raise whatever the library of the store raises. ``moved`` is when bytes last went over, by the monotonic
    clock in seconds. Raises InputError when the URL is none, or when its library is missing.
    """

    def __init__(self, url: str) -> None:
        self.url, self.moved = url.rstrip("/"), 0.0
        found = SCHEME.fullmatch(url)
        if found is None:
            raise InputError(f"--mirror {url!r}: no URL; give s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or file:///FOLDER")
        if redacted(url) != url:
            raise InputError("--mirror: holds a password; leave it out, credentials come from the environment")
        scheme = found[1].lower()
        self._whole = scheme in OBJECT_STORES
        try:
            fresh = {"skip_instance_cache": True, "use_listings_cache": False}
            self._system, self._root = fsspec.url_to_fs(self.url, **fresh, **OPTIONS.get(scheme, {}))
        except ImportError as error:
            extra = EXTRAS.get(scheme)
            way = f"pip install 'llm-nas[{extra}]'" if extra else f"install what fsspec needs ({error})"
            raise InputError(f"--mirror {url}: a package for {scheme}:// is missing; {way}") from error
        except ValueError as error:
            raise InputError(f"--mirror {url}: {error}; give s3://, gs:// or file://") from error

    def check(self) -> None:
        """Write, read and remove a file. Raises InputError when one of it fails: nothing is computed before."""
        name = f"check-{uuid.uuid4().hex}"
        try:
            self.write(name, b"check")
            back = self.read(name)
            self.remove([name])
        except Exception as error:  # whatever the library of a store raises
            raise InputError(self._refused(error)) from error
        if back != b"check":
            raise InputError(f"--mirror {self.url}: what is written there cannot be read again; give another place")

    def _refused(self, error: Exception) -> str:
        what = redacted(named(error, UNCUT))[:200]
        needs = "make the bucket, and check the credentials and the address in the environment (docs/storage.md)"
        return f"--mirror {self.url}: cannot be written ({what}); {needs if self._whole else 'give another place'}"

    def inside(self, folder: str) -> Store:
        """The folder ``folder`` of this one."""
        return Store(f"{self.url}/{folder}")

    def sizes(self, folder: str) -> dict[str, int]:
        """The names in ``folder``, without it, and their sizes in bytes; none when it is not there."""
        found = self._system.find(self._path(folder), detail=True)
        return {str(path).rsplit("/", 1)[-1]: int(one["size"]) for path, one in found.items()}

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None when it is not there."""
        try:
            return bytes(self._system.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file."""
        self._put(name, lambda path: self._system.pipe_file(path, content))

    def upload(self, name: str, file: Path) -> None:
        """Copy ``file`` there."""
        self._put(name, lambda path: self._system.put_file(str(file), path, callback=_Moving(self)))

    def download(self, name: str, file: Path) -> None:
        """Copy a file of the store to ``file``. Raises FileNotFoundError when it is not there."""
        self._system.get_file(self._path(name), str(file))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that are there."""
        if paths := [self._path(name) for name in names]:
            self._system.rm(paths)

    def _put(self, name: str, put: Callable[[str], None]) -> None:
        """Other file systems than object stores show a file while it is written, so it gets its name afterwards."""
        path = self._path(name)
        if self._whole:
            put(path)
        else:
            self._system.makedirs(os.path.dirname(path), exist_ok=True)
            put(f"{path}.part")
            self._system.mv(f"{path}.part", path)
        self.moved = time.monotonic()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class _Moving(Callback):  # type: ignore[misc]
    """Notes when a part of a file has gone over."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def call(self, *_: Any, **__: Any) -> None:
        self._store.moved = time.monotonic()
