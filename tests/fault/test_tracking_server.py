"""A search goes on whatever its MLflow server does, and in the end the server holds every trial exactly once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mute_server import mute_server
from tracking_reference import contents, record, search_events

from nas.tracking.messages import Event, SearchFinished
from nas.tracking.mlflow_environment import set_defaults
from nas.tracking.tracker import Tracker

set_defaults()

from mlflow import MlflowClient  # noqa: E402

LONG = 300.0  # seconds that nothing should take, on a machine however busy
EXPERIMENT = "nas"
DRIVER = """
import os, sys
from pathlib import Path
from nas.tracking.outbox import Outbox
from nas.tracking.tracker import Tracker
from tracking_reference import search_events

uri, study, folder, killed_after = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
remove, delivered = Outbox.remove, []

def die_before_removing(outbox, name):
    delivered.append(name)
    if len(delivered) == killed_after:
        os.kill(os.getpid(), 9)
    remove(outbox, name)

Outbox.remove = die_before_removing
tracker = Tracker(uri, "nas", folder / "outbox")
for event in search_events(study, folder):
    tracker.put(event)
tracker.close(300)
"""


class Server:
    """`mlflow server` on one port of the loopback device, over one SQLite store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers."""
        if self.process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.answers, f"{self.uri}: {(self.folder / 'server.log').read_text()[-2000:]}")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def contents(self, study: str) -> dict[str, Any]:
        return contents(MlflowClient(self.uri, self.uri), study, EXPERIMENT)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(condition: Any, what: str) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def plain(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the server holds of a search that nothing disturbed."""
    folder = tmp_path_factory.mktemp("plain")
    server.start()
    tracker = Tracker(server.uri, EXPERIMENT, folder / "outbox")
    put_all(tracker, search_events("plain", folder))
    assert tracker.close(LONG) == 0, tracker.problem
    return renamed(server.contents("plain"), "plain")


@pytest.fixture
def mute() -> Iterator[str]:
    with mute_server() as address:
        yield address


def put_all(tracker: Tracker, events: list[Event]) -> None:
    for event in events:
        tracker.put(event)


def renamed(held: dict[str, Any], study: str) -> dict[str, Any]:
    """What the store holds of ``study`` as if it had been the study "s"; its weights differ, so their digests go."""
    runs = []
    for run in held["runs"]:
        text = {key: str(value).replace(study, "s") for key, value in run["tags"].items()}
        files = [one.split("/")[-1].split(":")[0] for one in run["files"]]
        runs.append({**run, "name": run["name"].replace(study, "s"), "tags": text, "files": files})
    versions = [(version, is_parent) for version, _, _, is_parent in held["versions"]]
    return {"runs": runs, "versions": versions, "best": held["best"]}


def test_a_server_that_is_down_or_mute_and_comes_back_holds_everything_once(
    server: Server, mute: str, tmp_path: Path
) -> None:
    """One search after another on the same outbox: down, mute, up, killed in the middle, up again."""
    server.kill()
    events = search_events("s", tmp_path)
    down = Tracker(server.uri, EXPERIMENT, tmp_path / "outbox")
    put_all(down, events[:2])
    wait_for(lambda: down.problem, "no attempt was made")
    put_all(down, events[2:4])
    assert down.close(0.1) == 3  # two snapshots of trial 0 became one

    silent = Tracker(mute, EXPERIMENT, tmp_path / "outbox")
    put_all(silent, events[4:5])
    assert silent.close(0.1) == 4

    server.start()
    living = Tracker(server.uri, EXPERIMENT, tmp_path / "outbox")
    wait_for(lambda: not living.outbox.waiting(), f"{living.problem}")
    server.kill()
    put_all(living, events[5:])
    wait_for(lambda: living.problem, "the server's death went unnoticed")
    assert living.close(0.1) == len(events[5:])

    server.start()
    last = Tracker(server.uri, EXPERIMENT, tmp_path / "outbox")
    assert last.close(LONG) == 0
    held = server.contents("s")
    runs = sorted(held["runs"], key=lambda run: run["name"].removeprefix("★ "))
    assert [(run["name"].removeprefix("★ ").split()[0], run["status"]) for run in runs] == [
        ("s", "FINISHED"),
        ("trial-000", "FINISHED"),
        ("trial-001", "FINISHED"),
        ("trial-002", "FAILED"),
        ("trial-003", "FINISHED"),
    ]
    for run, state in zip(runs[1:], ("COMPLETE", "PRUNED", "FAIL", "COMPLETE"), strict=True):
        number = int(run["tags"]["nas.trial"])
        rungs = {"PRUNED": 2, "FAIL": 1}.get(state, 4)
        losses = [(step, value) for key, value, _, step in run["metrics"] if key == "val_loss"]
        assert sorted(losses) == sorted(record(number, state, rungs).curve)
        assert len(run["metrics"]) == len(set(run["metrics"]))
    files = {one.split("/")[-1].split(":")[0] for one in runs[0]["files"]}
    assert files == {"MLmodel", "config.json", "model.safetensors", "report.md", "requirements.txt"}
    assert (len(held["versions"]), held["best"]) == (1, ["1"])


@pytest.mark.parametrize("killed_after", [2, 7])
def test_a_driver_killed_between_delivery_and_removal_repeats_nothing(
    server: Server, plain: dict[str, Any], killed_after: int, tmp_path: Path
) -> None:
    study = f"killed-{killed_after}"
    arguments = [server.uri, study, str(tmp_path), str(killed_after)]
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", DRIVER, *arguments], env={**os.environ, **path}, timeout=2 * LONG)
    assert killed.returncode == -signal.SIGKILL
    assert Tracker(server.uri, EXPERIMENT, tmp_path / "outbox").close(LONG) == 0
    assert renamed(server.contents(study), study) == plain


def test_what_the_server_refuses_is_set_aside_and_the_rest_goes_on(
    server: Server, plain: dict[str, Any], tmp_path: Path
) -> None:
    tracker = Tracker(server.uri, EXPERIMENT, tmp_path / "outbox")
    events = search_events("refused", tmp_path)
    put_all(tracker, [*events[:-1], SearchFinished("refused", {"no/such?name": 1.0}), events[-1]])
    assert tracker.close(LONG) == 0
    assert tracker.rejected == 1
    assert renamed(server.contents("refused"), "refused") == plain
