"""Tracking in MLflow that can never stop or slow a search: events go to an outbox, a thread delivers them.

The driver is the only one that tracks. A server that is down, slow, or dies in the middle changes nothing; what
could not be delivered stays in the outbox, and the next `Tracker` on the same outbox delivers it, exactly once.
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
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from filelock import Timeout

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
from nas.tracking.outbox import Outbox, RejectedError
from search_spaces.errors import InputError

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
UI = "http://127.0.0.1:5000"  # where `mlflow ui` answers when it is told nothing else
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts, doubling
CLOSING_PAUSE = 0.25  # between attempts while somebody waits for the end
IDLE_PAUSE = 2.0  # until the outbox is looked at again for what other processes added
GIT_SECONDS = 5.0

log = logging.getLogger(__name__)


class Tracker:
    """Delivers events to MLflow in the background.

    ``artifact_root`` is where the artifacts of a new experiment go when ``uri`` is a database; a server knows its own
    place. ``problem`` is what keeps events waiting, in one line, or None; ``experiment_id`` is MLflow's own name of
    the experiment, None until it is known. Raises InputError when ``uri`` is a plain folder, which MLflow has given up.
    """

    def __init__(self, uri: str, experiment: str, outbox: Path, artifact_root: Path | None = None) -> None:
        if urlsplit(uri).scheme in ("", "file"):
            raise InputError(
                f"MLFLOW_TRACKING_URI {uri!r}: MLflow keeps no runs in plain folders any more; "
                "give sqlite:////folder/mlflow.db or http://HOST:5000"
            )
        set_defaults()
        self.uri, self.experiment = uri, experiment
        self.artifact_root = None if uri.startswith(SERVERS) else artifact_root
        self.outbox = Outbox(outbox)
        self.problem: str | None = None
        self.experiment_id: str | None = None
        self.lost = 0
        self._delivery: MlflowDelivery | None = None
        self._added, self._closing, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Note ``event`` for delivery and return at once; never raises for a full disk or a missing file."""
        try:
            self.outbox.add(event)
        except OSError as error:
            self.lost += 1
            log.warning("not tracked: %s (%s)", type(event).__name__, error)
        self._added.set()

    @property
    def rejected(self) -> int:
        """How many events MLflow refused for good; they are in ``outbox/rejected`` with the reason beside them."""
        return len(self.outbox.rejected())

    def close(self, timeout: float = 10.0) -> int:
        """Deliver what waits, for at most ``timeout`` seconds. Returns how many events still wait afterwards."""
        self._closing.set()
        self._added.set()
        self._thread.join(timeout)
        self._ended.set()
        return len(self.outbox.waiting())

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while not self._ended.is_set():
            closing = self._closing.is_set()  # before the look: what is put later than a look that found nothing waits
            try:
                self._deliver_waiting()
            except Exception as error:  # whatever a store, a network or a server comes up with: try again
                self._fail(error)
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self.problem, pause = None, FIRST_PAUSE
            if closing:
                return
            self._added.wait(IDLE_PAUSE)
            self._added.clear()

    def _rest(self, seconds: float) -> None:
        if self._closing.is_set():
            self._ended.wait(CLOSING_PAUSE)
        else:
            self._closing.wait(seconds)

    def _fail(self, error: Exception) -> None:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if self.problem is None:
            log.warning(
                "MLflow at %s: %s; the search goes on, events wait in %s",
                without_password(self.uri),
                problem,
                self.outbox.root,
            )
        self.problem = problem
        self._delivery = None  # what was known of the server may have ended with it

    def _deliver_waiting(self) -> None:
        try:
            with self.outbox.lock.acquire(timeout=0):
                while not self._ended.is_set() and (names := self.outbox.waiting()):
                    self._deliver(names[0])
        except Timeout:
            if self._closing.is_set() and self.outbox.waiting():
                raise TimeoutError("another process is delivering from this outbox") from None

    def _deliver(self, name: str) -> None:
        from nas.tracking.mlflow_delivery import MlflowDelivery  # takes seconds: a search does not wait for it

        if self._delivery is None:
            self._delivery = MlflowDelivery(self.uri, self.experiment, self.artifact_root)
            self.experiment_id = self._delivery.experiment
        try:
            event = self.outbox.read(name)
            if event is not None:
                self._delivery.deliver(event, self.outbox.files(name))
            self.outbox.remove(name)
        except RejectedError as error:
            log.warning("MLflow refused %s for good: %s; kept in %s", name, error, self.outbox.refused)
            self.outbox.reject(name, str(error))


def tracking_uri(output: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite store in ``output``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output.resolve() / 'mlflow.db'}"


def ui_lines(uri: str, experiment_id: str | None) -> tuple[str, ...]:
    """How to see the runs of an experiment in the store at ``uri``: a command, an address; they never show a password.

    The address is of the runs themselves where the experiment is known: MLflow's first page is about chats.
    """
    runs = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning" if experiment_id else ""
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
    """Tags that say which code ran: the package's version and, in a checkout, the commit."""
    try:
        version = importlib.metadata.version("llm-nas")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, such as the working directory of a Ray job
        version = "not installed"
    here = Path(__file__).resolve()
    if _git("ls-files", "--error-unmatch", here.name) is None:  # an installation, perhaps inside another repository
        return {"code": f"llm-nas {version}"}
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if not commit:
        return {"code": f"llm-nas {version}"}
    state = " with uncommitted changes" if changed else ""
    return {"code": f"llm-nas {version}, commit {commit[:12]}{state}", "mlflow.source.git.commit": commit}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
