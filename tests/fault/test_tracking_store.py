"""MLflow's own store is locked, full, or answers with errors: the search does not notice, and all is delivered once."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bounded import run_bounded
from small_search import ROOT, clean_environment
from tracking_reference import contents, search_events

from nas.tracking.messages import Event
from nas.tracking.mlflow_environment import set_defaults
from nas.tracking.tracker import Tracker

set_defaults()

from mlflow import MlflowClient  # noqa: E402

LONG = 300.0  # seconds that nothing should take, on a machine however busy
EXPERIMENT, STUDY = "nas", "s"
LOCK = """
import sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
# A disk of 16 MB that is all but filled once MLflow has made its store there.
FULL = """
import json, sys, time
from pathlib import Path
from test_tracking_store import LONG, STUDY, held, make_store, put_all, tracker_in, wait_for
from tracking_reference import search_events

disk, folder = Path(sys.argv[1]), Path(sys.argv[2])
make_store(disk, folder / "first")
filler = disk / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
full = tracker_in(disk, folder)
put_all(full, search_events(STUDY, folder))
wait_for(lambda: full.problem, "the full disk went unnoticed")
problem, left = full.problem, full.close(0.1)
filler.unlink()
late = tracker_in(disk, folder).close(LONG)
print(json.dumps([problem, left, late, held(disk)]))
"""
MOUNT = 'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"'


def tracker_in(store: Path, folder: Path) -> Tracker:
    return Tracker(f"sqlite:///{store / 'mlflow.db'}", EXPERIMENT, folder / "outbox", folder / "artifacts")


def put_all(tracker: Tracker, events: list[Event]) -> None:
    for event in events:
        tracker.put(event)


def make_store(store: Path, folder: Path) -> None:
    """Let MLflow make its store, for another study."""
    first = tracker_in(store, folder)
    put_all(first, search_events("first", folder)[:1])
    assert first.close(LONG) == 0, first.problem
    assert (store / "mlflow.db").is_file()


def wait_for(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def held(store: Path) -> Any:
    """What the store holds, without what the weights and the folder of a test decide."""
    uri = f"sqlite:///{store / 'mlflow.db'}"
    found = contents(MlflowClient(uri, uri), STUDY, EXPERIMENT)
    for run in found["runs"]:
        run["files"] = [one.split("/")[-1].split(":")[0] for one in run["files"]]
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the store holds of a search that nothing disturbed."""
    folder = tmp_path_factory.mktemp("plain")
    tracker = tracker_in(folder, folder)
    put_all(tracker, search_events(STUDY, folder))
    assert tracker.close(LONG) == 0, tracker.problem
    return held(folder)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Another process keeps the database for itself."""
    command = [sys.executable, "-c", LOCK, str(store / "mlflow.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        yield
        process.communicate("")


def test_a_store_that_another_process_has_locked_gets_everything_later(
    plain: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(tmp_path, tmp_path / "first")
    events = search_events(STUDY, tmp_path)
    with locked(tmp_path), caplog.at_level(logging.WARNING, "nas.tracking"):
        tracker = tracker_in(tmp_path, tmp_path)
        put_all(tracker, events)
        wait_for(lambda: tracker.problem, "the lock went unnoticed")
        assert tracker.close(0.1) > 0
        assert "database is locked" in str(tracker.problem)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1, [one.getMessage() for one in warnings]
    assert "the search continues, events wait in" in warnings[0].getMessage()
    assert tracker_in(tmp_path, tmp_path).close(LONG) == 0
    assert held(tmp_path) == plain


def test_an_outbox_that_is_replayed_twice_changes_nothing(plain: Any, tmp_path: Path) -> None:
    """As when a folder comes back from a backup."""
    tracker = tracker_in(tmp_path, tmp_path)
    with tracker.outbox.lease:  # nothing is delivered yet
        put_all(tracker, search_events(STUDY, tmp_path))
        shutil.copytree(tmp_path / "outbox", tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("*.json"))) > 5
    assert tracker.close(LONG) == 0
    assert held(tmp_path) == plain
    for _ in range(2):
        shutil.copytree(tmp_path / "kept", tmp_path / "outbox", dirs_exist_ok=True)
        again = tracker_in(tmp_path, tmp_path)
        assert again.close(LONG) == 0
        assert again.rejected == 0
        assert held(tmp_path) == plain


class Broken(BaseHTTPRequestHandler):
    """Answers 500 to whatever is asked."""

    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PATCH = do_GET  # noqa: N815 - the names are those of the library

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def test_a_server_that_answers_500_gets_nothing_and_the_next_one_everything(
    plain: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server, caplog.at_level(logging.WARNING, "nas.tracking"):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        events = search_events(STUDY, tmp_path)
        tracker = Tracker(f"http://127.0.0.1:{server.server_port}", EXPERIMENT, tmp_path / "outbox")
        put_all(tracker, events)
        wait_for(lambda: tracker.problem, "the errors went unnoticed")
        assert tracker.close(0.1) > 0
        assert tracker.rejected == 0
        server.shutdown()
    assert len(caplog.records) == 1
    assert tracker_in(tmp_path, tmp_path).close(LONG) == 0
    assert held(tmp_path) == plain


def test_a_store_on_a_full_disk_gets_everything_when_there_is_space(plain: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    space = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c", MOUNT, str(disk)]
    if subprocess.run([*space, "true"], capture_output=True).returncode:
        pytest.skip("this account may not mount a disk")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    command = [*space, sys.executable, "-c", FULL, disk, tmp_path]
    done = run_bounded(command, env=clean_environment(PYTHONPATH=path))
    assert done.returncode == 0, done.stderr[-3000:]
    problem, left, late, found = json.loads(done.stdout.splitlines()[-1])
    assert "No space left on device" in problem
    assert left > 0
    assert late == 0
    assert found == json.loads(json.dumps(plain))
