"""Keeps the mirror of one search up to date, in a thread. Nothing that goes wrong with it stops the search."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import threading
import time
import uuid
from pathlib import Path

import optuna

from nas.mirror.contents import HELD, hold
from nas.mirror.manifest import MANIFEST, OBJECTS, Entry, Manifest, Standing, read_manifest
from nas.mirror.store import Store
from nas.mirror.study_copy import copy_out, file_of, found_study, standing_of, study_id
from nas.planning.plan import Plan
from nas.study.database import SQLITE
from search_spaces.errors import UNCUT, InputError, named
from trials.storage.durable import file_sha256
from trials.storage.redact import redacted

SHORTEST_REST, LONGEST_REST = 1.0, 30.0  # seconds between two rounds
SHARE = 3  # within these, a rest has so many times the processor's seconds of the round before it
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts after an error, doubling
CLOSING_PAUSE = 0.5  # the same while `close` waits

log = logging.getLogger(__name__)


class TakenOverError(Exception):
    """Another process writes the mirror now."""


class MirrorWriter:
    """Copies the files and the study of ``plan`` to ``store``, the folder of its mirror.

    Objects have their sha256 as their name and go first, the manifest that names them goes last. So whoever reads the
    mirror sees the last complete round, whenever this process or the network dies. Objects that no manifest names any
    more are removed after that.

    ``found`` is the manifest that was there at the start, and ``scores`` the entry of the importance scores in the
    cache. ``problem`` is one line about the error that delays the mirror, or None.
    """

    def __init__(self, plan: Plan, store: Store, found: Manifest | None, scores: Path | None) -> None:
        self.plan, self.store, self.scores = plan, store, scores
        self.problem: str | None = None
        self._owner = f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._owners = {self._owner, found.owner if found else ""}
        self._held = plan.folder / HELD
        self._study: optuna.Study | None = None
        self._written: Manifest | None = None
        self._there: dict[str, int] | None = None  # objects in the store and their sizes; None: not looked at
        self._digests: dict[tuple[str, int, int], str] = {}  # by name, size and time of change
        self._left: dict[str, Entry] = {}
        self._wake, self._closing, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something has changed. Returns at once."""
        self._wake.set()

    def close(self, idle: float, most: float = float("inf")) -> str | None:
        """Bring over what is left. Returns one line about what is missing then, or None.

        It gives up when nothing has gone over for ``idle`` seconds, and after ``most`` seconds.
        """
        self._closing.set()
        self._wake.set()
        began = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            now = time.monotonic()
            if now - max(began, self.store.moved) > idle or now - began > most:
                break
        self._ended.set()
        if not self._thread.is_alive() and self.problem is None:
            return None
        size = sum(one.size for one in self._left.values())
        why = f" ({self.problem})" if self.problem else ""
        return f"{len(self._left)} files of {size / 1e6:,.1f} MB and the newest state are not there{why}"

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while not self._ended.is_set():
            closing = self._closing.is_set()  # read first, so that this round has all that happened before `close`
            self._wake.clear()
            began = time.thread_time()
            try:
                self._round()
            except TakenOverError as error:
                self.problem = str(error)
                log.warning("mirror %s: %s; this search goes on without it", self.store.url, error)
                return
            except Exception as error:  # any error of a store, a network or a server is retried
                if self._ended.is_set():
                    return
                self._fail(error)
                (self._ended if closing else self._closing).wait(CLOSING_PAUSE if closing else pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            finally:
                shutil.rmtree(self._held, ignore_errors=True)
            self.problem, pause = None, FIRST_PAUSE
            if closing:
                return
            self._closing.wait(min(max(SHORTEST_REST, SHARE * (time.thread_time() - began)), LONGEST_REST))
            self._wake.wait()

    def _fail(self, error: Exception) -> None:
        problem = redacted(named(error, UNCUT))[:200]
        if self.problem is None:
            log.warning("mirror %s: %s; the search goes on, and it is tried again", self.store.url, problem)
        self.problem, self._there = problem, None

    def _round(self) -> None:
        """Bring the mirror to the present state."""
        shutil.rmtree(self._held, ignore_errors=True)  # of a process that was killed
        self._held.mkdir()
        standing = self._standing()  # first, then the study, then the files: a mirror has at least what it says
        database = self._copied_study()
        held = hold(self.plan, self.scores, self._held)
        files = {name: self._entry(name, path) for name, path in held.items()}
        entry = self._entry("", database) if database else None
        sources = {files[name].sha256: path for name, path in held.items()}
        if entry and database:
            sources[entry.sha256] = database
        study = study_id(self._study) if self._study else ""
        new = Manifest(self.plan.study, study, self._owner, standing, files, entry)
        self._left = {one.sha256: one for one in (*files.values(), *([entry] if entry else []))}
        if self._there is None:
            self._check_owner()
            self._there = self.store.sizes(OBJECTS)
        for sha256, one in list(self._left.items()):
            if self._there.get(sha256) != one.size:
                self._upload(sources[sha256], one)
            del self._left[sha256]
        if new != self._written:
            self._check_owner()
            self._check_time()
            self.store.write(MANIFEST, new.to_bytes())
            self._written = new
            self._remove_unnamed(new)

    def _upload(self, source: Path, entry: Entry) -> None:
        self._check_time()
        self.store.upload(f"{OBJECTS}/{entry.sha256}", source)
        assert self._there is not None
        self._there[entry.sha256] = entry.size

    def _remove_unnamed(self, manifest: Manifest) -> None:
        assert self._there is not None
        if unnamed := sorted(set(self._there) - manifest.objects):
            self.store.remove(f"{OBJECTS}/{one}" for one in unnamed)
            for one in unnamed:
                del self._there[one]

    def _check_time(self) -> None:
        if self._ended.is_set():
            raise InterruptedError("the search has ended")

    def _check_owner(self) -> None:
        try:
            found = read_manifest(self.store, self.plan.study)
        except InputError as error:  # somebody has damaged it meanwhile
            raise TakenOverError(str(error)) from error
        if found is not None and found.owner not in self._owners:
            host = found.owner.split(":")[0]
            raise TakenOverError(f"a search on {host} writes it now and has {found.standing}")

    def _standing(self) -> Standing:
        if self._study is None:
            self._study = found_study(self.plan.storage, self.plan.study)
        return standing_of(self._study) if self._study else Standing()

    def _copied_study(self) -> Path | None:
        """The study in a file of its own; None on a server, which is durable itself."""
        url = self.plan.storage
        if not url.startswith(SQLITE) or self._study is None:
            return None
        copy = self._held / "study.db"
        copy_out(file_of(url), self.plan.study, copy)
        return copy

    def _entry(self, name: str, path: Path) -> Entry:
        status = path.stat()
        key = name, status.st_size, status.st_mtime_ns
        if key not in self._digests:
            self._digests[key] = file_sha256(path)
        return Entry(status.st_size, self._digests[key])
