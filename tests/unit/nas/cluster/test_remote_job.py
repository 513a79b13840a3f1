"""A job of a cluster whose Jobs API the test plays: what breaks on the way, and what is printed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from nas.cluster import remote_job as module
from nas.cluster.remote_job import Job, connect
from search_spaces.errors import InputError

ROOT = Path(__file__).resolve().parents[4]


class Cluster:
    """Plays Ray's client. Each item of ``log`` is a line, or an exception that breaks the connection there."""

    def __init__(self, *log: str | Exception, status: str = "SUCCEEDED", code: int | None = 0, **details: Any) -> None:
        self.log, self.connections, self.stopped = log, 0, False
        known = {"driver_exit_code": code, "driver_node_id": "node", "message": None, **details}
        self.details = SimpleNamespace(status=JobStatus(status), **known)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.connections += 1
        breaks = 0
        for one in self.log:
            if isinstance(one, str):
                yield one
            elif (breaks := breaks + 1) >= self.connections:
                raise one

    def get_job_info(self, name: str) -> Any:
        return self.details

    def stop_job(self, name: str) -> bool:
        self.stopped = True
        return True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


def job(cluster: Any) -> Job:
    return Job(cluster, "http://head:8265", "nas_1")


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (3, 3), (130, 130), (-9, 137), (-15, 143)])
def test_exit_code_is_that_of_the_job(code: int, expected: int) -> None:
    assert job(Cluster(status="FAILED" if code else "SUCCEEDED", code=code)).follow() == expected


def test_log_is_printed_once_however_often_the_connection_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["first\n", "second ", "half\n", "third\n"]
    broken = Cluster(lines[0], ConnectionError(), lines[1], RuntimeError("1006"), *lines[2:], OSError("cut"))
    assert job(broken).follow() == 0
    assert broken.connections == 4
    assert capsys.readouterr().out == "".join(lines)


def test_connection_that_stays_lost_is_told_and_the_job_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(0, 100_000, 60))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
    cut = Cluster(*[ConnectionError("cut")] * 1000)
    assert job(cut).follow() == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "ray job logs --follow --address http://head:8265 nas_1" in told[-1]
    assert not cut.stopped


def test_closed_output_is_no_lost_connection(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(BrokenPipeError(), "line")
    assert job(cluster).follow() == 1
    assert cluster.connections == 1
    assert "nobody reads the output" in capsys.readouterr().err


def test_job_that_never_ran_is_wrong_input() -> None:
    never = Cluster(status="FAILED", code=None, driver_node_id=None, message="no node\nfor it")
    with pytest.raises(InputError, match=r"did not start the job: no node for it"):
        job(never).follow()


def test_job_whose_node_died_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert job(Cluster(status="FAILED", code=None, message="the supervisor died")).follow() == 1
    assert "the supervisor died" in capsys.readouterr().err


def test_stopped_job_shows_its_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster("to continue: again\n", status="STOPPED", code=None)
    assert job(cluster).stop() == 130
    assert cluster.stopped
    assert "to continue: again" in capsys.readouterr().out


def test_job_that_is_stopped_before_it_starts_is_interrupted() -> None:
    assert job(Cluster(status="FAILED", code=None, driver_node_id=None, message="stopped")).stop() == 130


@pytest.mark.parametrize(("problem", "code"), [("Job nas_1 does not exist", 130), ("503", 1)])
def test_job_that_cannot_be_stopped(problem: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster()
    cluster.stop_job = _raise(RuntimeError(problem))  # type: ignore[method-assign]
    assert job(cluster).stop() == code
    assert ("by hand: RAY_AUTH_MODE=token ray job stop" in capsys.readouterr().err) == (code == 1)


def test_second_ctrl_c_leaves_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster()
    cluster.stop_job = _raise(KeyboardInterrupt())  # type: ignore[method-assign]
    assert job(cluster).stop() == 130
    assert "may still be running" in capsys.readouterr().err


def _raise(error: BaseException) -> Callable[[str], bool]:
    def raising(name: str) -> bool:
        raise error

    return raising


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto", "", "http://", "anyscale://x"])
def test_address_that_is_no_jobs_api_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="give http://HOST:8265"):
        connect(address)


def test_address_where_nothing_listens_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="nothing answers there"):
            connect(f"http://127.0.0.1:{free.getsockname()[1]}")


def connect_to_a_server_that_says(answer: bytes) -> str:
    """What `connect` prints, in a process of its own: Ray keeps the first token that it reads."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            pass

    code = "import sys; from nas.cluster.remote_job import connect; connect(sys.argv[1])"
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", code, f"http://127.0.0.1:{server.server_port}"]
        environment = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        server.shutdown()
    return done.stderr


def test_server_that_is_not_ray_is_refused() -> None:
    told = connect_to_a_server_that_says(b"<html>hello</html>")
    assert "InputError" in told
    assert "no Jobs API of Ray is there" in told
    assert "warning" not in told


def test_cluster_that_asks_for_no_token_is_warned_of() -> None:
    told = connect_to_a_server_that_says(b'{"ray_version": "2.60.0"}')
    assert told.startswith("warning: http://127.0.0.1:")
    assert "asks for no token; whoever reaches it can run programs there" in told
    assert told.count("\n") == 1
