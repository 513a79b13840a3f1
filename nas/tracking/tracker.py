"""Tracking in MLflow that cannot stop or slow a search: events go to an outbox, and a thread delivers them.

Only the driver tracks. A search continues when the server is down, slow, or dies in the middle. Undelivered events stay
in the outbox. The next `Tracker` on the same outbox delivers them, and each event has its effect exactly once.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from filelock import Timeout

from nas.planning.errors import free_space
from nas.tracking.messages import (
    Artifacts,
    Event,
    FinalChanged,
    ModelExported,
    SearchFinished,
    SearchStarted,
    TrialChanged,
)
from nas.tracking.mlflow_environment import set_defaults
from nas.tracking.mlflow_view import runs_page
from nas.tracking.outbox import Outbox, RejectedError
from search_spaces.errors import InputError
from trials.storage.disk import is_full
from trials.storage.redact import redacted, redacted_line

if TYPE_CHECKING:
    from nas.tracking.mlflow_delivery import MlflowDelivery

__all__ = [
    "Artifacts",
    "Event",
    "FinalChanged",
    "ModelExported",
    "SearchFinished",
    "SearchStarted",
    "Tracker",
    "TrialChanged",
    "code_version",
    "tracking_uri",
    "ui_lines",
]

SERVERS = ("http://", "https://", "databricks")
UI = "http://127.0.0.1:5000"  # the default address of `mlflow ui`
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts, doubling
CLOSING_PAUSE = 0.25  # seconds between attempts while `close` waits
IDLE_PAUSE = 2.0  # seconds until the next look for events that other processes added
GATHER_SECONDS = 1.0  # from an event to its delivery; a later event of the same trial replaces it meanwhile
GIT_SECONDS = 5.0

log = logging.getLogger(__name__)


class Tracker:
    """Delivers events to MLflow in the background.

    ``artifact_root`` is the artifact folder of a new experiment if ``uri`` is a database; a server has its own.
    ``problem`` is one line about the error that delays deliveries, or None. ``experiment_id`` is MLflow's id of the
    experiment, None until it is known. ``lost`` counts events whose files are missing. Events for which the disk has no
    space wait in memory.

    Raises InputError when ``uri`` is a plain folder, which MLflow no longer supports.
    """

    def __init__(self, uri: str, experiment: str, outbox: Path, artifact_root: Path | None = None) -> None:
        if urlsplit(uri).scheme in ("", "file"):
            raise InputError(
                f"MLFLOW_TRACKING_URI {redacted(uri)!r}: MLflow no longer stores runs in plain folders; "
                "give sqlite:////folder/mlflow.db or http://HOST:5000"
            )
        set_defaults()
        self.uri, self.experiment = uri, experiment
        self.artifact_root = None if uri.startswith(SERVERS) else artifact_root
        self.outbox = Outbox(outbox)
        self.problem: str | None = None
        self.experiment_id: str | None = None
        self.lost = 0
        self._unstored: deque[Event] = deque()
        self._full, self._storing = False, threading.Lock()
        self._delivery: MlflowDelivery | None = None
        self._added, self._closing, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Store ``event`` for delivery and return at once. A full disk or a missing file is logged, not raised."""
        self._unstored.append(event)
        self._store()
        self._added.set()

    def _store(self) -> None:
        """Store the events that wait in memory, oldest first, as far as there is space."""
        with self._storing:
            while self._unstored:
                event = self._unstored[0]
                try:
                    self.outbox.add(event)
                    self._full = False
                except OSError as error:
                    if is_full(error):
                        if not self._full:
                            space = free_space(str(self.outbox.root.absolute()))
                            log.warning("MLflow: events wait in memory (%s); the search continues", space)
                        self._full = True
                        return
                    log.warning("not tracked: %s (%s)", type(event).__name__, error)
                    self.lost += 1
                self._unstored.popleft()

    @property
    def rejected(self) -> int:
        """How many events MLflow refused for good. They are in ``outbox/rejected``, each with the reason."""
        return len(self.outbox.rejected())

    def close(self, timeout: float = 10.0) -> int:
        """Deliver waiting events for at most ``timeout`` seconds. Returns how many events are still waiting."""
        self._closing.set()
        self._added.set()
        self._thread.join(timeout)
        self._ended.set()
        return len(self.outbox.waiting()) + len(self._unstored)

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while not self._ended.is_set():
            closing = self._closing.is_set()  # read first, so that this round delivers all events put before `close`
            try:
                self._store()
                self._deliver_waiting()
            except Exception as error:  # any error of a store, a network or a server is retried
                self._fail(error)
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self.problem, pause = None, FIRST_PAUSE
            if closing:
                return
            self._added.wait(IDLE_PAUSE)
            self._closing.wait(GATHER_SECONDS)
            self._added.clear()

    def _rest(self, seconds: float) -> None:
        if self._closing.is_set():
            self._ended.wait(CLOSING_PAUSE)
        else:
            self._closing.wait(seconds)

    def _fail(self, error: Exception) -> None:
        problem = redacted_line(error)
        if self.problem is None:
            log.warning(
                "MLflow at %s: %s; the search continues, events wait in %s",
                redacted(self.uri),
                problem,
                self.outbox.root,
            )
        self.problem = problem
        self._delivery = None  # its cached ids may not exist on a server that was restarted

    def _deliver_waiting(self) -> None:
        if not self.outbox.waiting():
            return
        try:
            with self.outbox.lease.acquire(timeout=0):
                for name in self.outbox.waiting():  # a folder with thousands of events is listed once
                    if self._ended.is_set():
                        return
                    self._deliver(name)
        except Timeout:
            if self._closing.is_set() and self.outbox.waiting():
                raise TimeoutError("another process is delivering from this outbox") from None

    def _deliver(self, name: str) -> None:
        from nas.tracking.mlflow_delivery import MlflowDelivery  # here, because importing MLflow takes seconds

        if self._delivery is None:
            self._delivery = MlflowDelivery(self.uri, self.experiment, self.artifact_root)
            self.experiment_id = self._delivery.experiment
        try:
            event = self.outbox.read(name)
            if event is not None:
                self._delivery.deliver(event, self.outbox.files(name))
            self.outbox.remove(name)
        except RejectedError as error:
            log.warning("MLflow refused %s for good: %s; kept in %s", name, redacted(str(error)), self.outbox.refused)
            self.outbox.reject(name, str(error))


def tracking_uri(output: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, otherwise a SQLite store in ``output``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output.resolve() / 'mlflow.db'}"


def ui_lines(uri: str, experiment_id: str | None, study_id: str) -> tuple[str, ...]:
    """How to see the runs of a study in the store at ``uri``: a command and an address, without a password.

    A server needs no command. The address opens the list of the study's runs if ``experiment_id`` is known, because
    MLflow's start page is about chats.
    """
    runs = runs_page(experiment_id, study_id) if experiment_id else ""
    if uri.startswith(("http://", "https://")):
        return (f"{without_password(uri).rstrip('/')}{runs}",)
    beside = Path(sys.executable).with_name("mlflow")
    command = "mlflow" if shutil.which("mlflow") == str(beside) else shlex.quote(str(beside))
    store = shlex.quote(uri) if without_password(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    return f"{command} ui --backend-store-uri {store}", f"{UI}{runs}"


def without_password(uri: str) -> str:
    """``uri`` without the user and password in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def code_version() -> dict[str, str]:
    """Tags for the code that ran: the version of the package and, in a checkout, the commit."""
    try:
        version = importlib.metadata.version("llm-nas")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, for example the working directory of a Ray job
        version = "not installed"
    here = Path(__file__).resolve()
    if _git("ls-files", "--error-unmatch", here.name) is None:  # installed, perhaps inside another repository
        return {"code": f"llm-nas {version}"}
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if not commit:
        return {"code": f"llm-nas {version}"}
    state = " with uncommitted changes" if changed else ""
    return {"code": f"llm-nas {version}, commit {commit[:12]}{state}", "mlflow.source.git.commit": commit}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # nosec B603 B607  # words of our own; git is the one of the user
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
