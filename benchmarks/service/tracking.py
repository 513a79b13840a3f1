"""Measures what an MLflow server that is down, mute, broken or killed costs a search.

    python -m benchmarks.service.tracking --budget 60%

Runs `python -m nas.search` with the given settings beside its own MLflow file, then beside each of these servers, and
prints the seconds of each and how many more they are than the least of the runs beside a file. There are two of those,
the first and the last: their difference is the noise of the machine. Every run has an output folder of its own.

    down     nobody listens
    mute     accepts every connection and never answers
    500      answers every request with an error
    killed   a real `mlflow server`, killed when the first trial is complete
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DEFAULTS = ["--model", "mini", "--trials", "4", "--screened", "16", "--finalists", "1", "--tokens-per-trial", "16384"]
COMPLETE = re.compile(r"trial \d+ .*, complete")
OnTrial = Callable[[], None]
Server = Callable[[Path], AbstractContextManager[tuple[str, OnTrial]]]
"""Runs during the block: its address, and what to do when the first trial is complete."""


def nothing() -> None:
    """Do nothing."""


@contextmanager
def own_file(folder: Path) -> Iterator[tuple[str, OnTrial]]:
    """No server: the search makes a SQLite file in its output folder."""
    yield "", nothing


@contextmanager
def down(folder: Path) -> Iterator[tuple[str, OnTrial]]:
    """The discard port: a connection is refused at once."""
    yield "http://127.0.0.1:9", nothing


@contextmanager
def mute(folder: Path) -> Iterator[tuple[str, OnTrial]]:
    """The kernel accepts connections for a socket that nobody reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", nothing


class _Broken(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815 - the names are those of the library

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def broken(folder: Path) -> Iterator[tuple[str, OnTrial]]:
    """Every answer is 500."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", nothing
        server.shutdown()


@contextmanager
def killed(folder: Path) -> Iterator[tuple[str, OnTrial]]:
    """A real server, in a process group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}", kill
    finally:
        kill()
        process.wait()


def _wait_for(address: str) -> None:
    while True:
        with suppress(OSError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(0.2)


SERVERS: dict[str, Server] = {
    "own file": own_file,
    "down": down,
    "mute": mute,
    "500": broken,
    "killed": killed,
    "own file again": own_file,
}


def search(flags: list[str], server: Server) -> float:
    """Seconds of one search beside ``server``."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (address, on_trial):
        command = [sys.executable, "-m", "nas.search", *DEFAULTS, *flags, "--output", folder, "--study", "one"]
        environment = {**os.environ, **({"MLFLOW_TRACKING_URI": address} if address else {})}
        started = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if COMPLETE.search(line):
                    on_trial()
        if running.returncode:
            raise SystemExit(f"the search ended with exit code {running.returncode}")
        return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    seconds = {}
    for name, server in SERVERS.items():
        seconds[name] = search(sys.argv[1:], server)
        print(f"{name:16}{seconds[name]:8.1f} s", flush=True)
    least = min(seconds["own file"], seconds["own file again"])
    for name, value in seconds.items():
        print(f"{name:16}{100 * (value / least - 1):+8.1f} %")


if __name__ == "__main__":
    main()
