"""A folder of events that wait for delivery, oldest first. It outlives the process that filled it.

An event is one JSON file, renamed into place. If it delivers files, a folder beside it holds a copy of them. Several
processes may add events; only the one that holds the lease delivers. Nothing is flushed to disk. A killed process loses
nothing. After a power cut, events may be lost here, but the study has the same facts.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from nas.tracking.messages import Artifacts, Event, FinalChanged, ModelExported, TrialChanged, from_dict, to_dict
from trials.storage.durable import from_json
from trials.storage.lease import lease
from trials.storage.redact import redacted

FILES = ".files"
ABANDONED_SECONDS = 3600.0  # age of files without an event; the process that was adding them has died


class RejectedError(Exception):
    """The event can never be delivered."""


class Outbox:
    """The waiting events in the folder ``root``, which is created if it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refused = root / "rejected"
        self.refused.mkdir(parents=True, exist_ok=True)
        self.lease = lease(root / "delivering.lease")
        self._adding = threading.Lock()
        self._last = max((int(name.split("-")[0]) for name in self.waiting()), default=0)
        self._newest: dict[tuple[str, int | str], str] = {}
        self._sweep()

    def add(self, event: Event) -> str:
        """Store ``event`` and return its name. An earlier snapshot of the same trial or final is dropped.

        Files are copied. Files of a model are linked instead, because `trials.export.export` never writes into a
        finished folder. Raises OSError when the disk is full or a file is missing.
        """
        with self._adding:
            self._last = max(time.time_ns(), self._last + 1)
            name = f"{self._last:020d}-{type(event).__name__}-{os.getpid()}"
            try:
                self._keep_files(event, self.files(name))
                _write(self._path(name), json.dumps(to_dict(event)))
            except OSError:
                shutil.rmtree(self.files(name), ignore_errors=True)  # what is left of it takes space for nothing
                raise
            if isinstance(event, TrialChanged):
                self._supersede((event.study, event.record.number), name)
            elif isinstance(event, FinalChanged):
                self._supersede((event.study, event.record.name), name)
        return name

    def waiting(self) -> list[str]:
        """The names of the waiting events, oldest first."""
        return sorted(one.stem for one in self.root.glob("*.json"))

    def read(self, name: str) -> Event | None:
        """The event, or None when it was removed. Raises RejectedError when the file is damaged."""
        try:
            return from_dict(from_json(self._path(name).read_bytes()))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise RejectedError(f"the file is damaged ({type(error).__name__}: {error})") from error

    def files(self, name: str) -> Path:
        """The folder for the files of an event. Events without files have none."""
        return self.root / f"{name}{FILES}"

    def remove(self, name: str) -> None:
        """Remove a delivered event and its files."""
        self._path(name).unlink(missing_ok=True)
        shutil.rmtree(self.files(name), ignore_errors=True)

    def reject(self, name: str, reason: str) -> None:
        """Move an event that can never be delivered to ``rejected``, with a text file for the ``reason``."""
        _write(self.refused / f"{name}.error.txt", f"{redacted(reason)}\n")
        if self.files(name).exists():
            os.replace(self.files(name), self.refused / f"{name}{FILES}")
        with suppress(FileNotFoundError):
            os.replace(self._path(name), self.refused / f"{name}.json")

    def rejected(self) -> list[str]:
        """The names of the rejected events."""
        return sorted(one.stem for one in self.refused.glob("*.json"))

    def _path(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def _keep_files(self, event: Event, folder: Path) -> None:
        if isinstance(event, Artifacts):
            for path in event.paths:
                _keep(Path(path), folder / Path(path).name, shutil.copy2)
        elif isinstance(event, ModelExported):
            _keep(Path(event.directory), folder, _link)

    def _supersede(self, trial: tuple[str, int | str], name: str) -> None:
        earlier = self._newest.get(trial)
        self._newest[trial] = name
        if earlier is not None:
            self._path(earlier).unlink(missing_ok=True)

    def _sweep(self) -> None:
        for folder in self.root.glob(f"*{FILES}"):
            old = time.time() - folder.stat().st_mtime > ABANDONED_SECONDS
            if old and not self._path(folder.name.removesuffix(FILES)).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(source: Path, target: Path, copy: object) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=copy)  # type: ignore[arg-type]
    else:
        shutil.copy2(source, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # on another file system, or on one without hard links
        shutil.copy2(source, target)
