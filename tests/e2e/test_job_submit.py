"""Searches as jobs of a head with token authentication, which this test starts."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import torch
from optuna.trial import TrialState
from small_search import ROOT, clean_environment, trials_in

RAY = ("-m", "ray.scripts.scripts")  # the program `ray`, by any Python
PATIENCE = 300  # seconds until a head that does not answer is given up
STARTED = "preparing teacher"  # in the output of a search, once it has workers


@dataclass(frozen=True)
class Head:
    """A running head: the address of its Jobs API, and an environment that holds its token."""

    address: str
    environment: dict[str, str]

    def submit(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` with the project as working directory; returns when the job has ended."""
        submit = ["job", "submit", "--address", self.address, "--working-dir", ".", "--"]
        return subprocess.run(
            [sys.executable, *RAY, *submit, *command],
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=900,
        )


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def python_without_the_project(folder: Path) -> Path:
    """The programs of a Python with all that is installed here except the project, as a cluster may have it."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for one in Path(torch.__file__).parents[1].iterdir():
        if "llm_nas" not in one.name:
            (packages / one.name).symlink_to(one)
    return folder / "bin"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    programs = python_without_the_project(folder / "venv")
    (folder / "token").write_text(secrets.token_hex(32))
    environment = clean_environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"), PATH=f"{programs}:{os.environ['PATH']}"
    )
    port = free_port()
    with TemporaryDirectory(prefix="ray") as sockets:  # their paths must be short
        flags = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}", "--num-cpus=2"]
        flags += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--dashboard-agent-listen-port=0"]
        flags += [f"--temp-dir={sockets}", f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]
        with (folder / "log").open("wb") as log:
            started = subprocess.Popen(
                [programs / "python", *RAY, "start", *flags],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until_it_answers(started, port, folder / "log")
            yield Head(f"http://127.0.0.1:{port}", environment)
        finally:
            end(started)


def wait_until_it_answers(started: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while started.poll() is None and time.monotonic() < until:
        with socket.socket() as probe:
            if "Ray runtime started" in log.read_text() and probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"no head:\n{log.read_text()}")


def end(started: subprocess.Popen[bytes]) -> None:
    """End the head and what it started, and nothing else: `ray stop` would end every Ray of this user."""
    family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
    started.terminate()
    _, left = psutil.wait_procs(family, timeout=20)
    for process in left:
        process.kill()
    started.wait()


def test_job_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    done = head.submit("touch", str(tmp_path / "done"), RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert done.returncode != 0
    assert "invalid or incorrect" in done.stdout + done.stderr
    assert not (tmp_path / "done").exists()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all nodes of the cluster share, and that this machine need not have."""
    return tmp_path_factory.mktemp("shared")


def flags(shared: Path, study: str, *more: object) -> list[str]:
    sizes = "--trials 2 --tokens-per-trial 1024 --sequence-length 64 --batch-tokens 256 --validation-tokens 1024"
    rest = "--calibration-samples 4 --screened 4 --scheduler none --baselines no --test-tokens 1024 --finalists 0"
    where = ["--output", shared, "--study", study, "--model", "mini", "--budget", "60%"]
    return [*sizes.split(), *rest.split(), *map(str, [*where, *more])]


def start_search(head: Head, folder: Path, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    """``python -m nas.search --submit`` in ``folder``, which is not that of the project; writes to files in it."""
    command = [sys.executable, "-m", "nas.search", "--submit", head.address, *map(str, arguments)]
    given = {**head.environment, "PYTHONPATH": str(ROOT), **environment}
    with (folder / "output").open("wb") as output, (folder / "errors").open("wb") as errors:
        return subprocess.Popen(command, cwd=folder, env=given, stdout=output, stderr=errors)


def ended(started: subprocess.Popen[bytes], folder: Path) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    return started.wait(PATIENCE), (folder / "output").read_text(), (folder / "errors").read_text()


def search(head: Head, folder: Path, *arguments: object, **environment: str) -> tuple[int, str, str]:
    return ended(start_search(head, folder, *arguments, **environment), folder)


def test_search_runs_as_a_job_with_the_code_and_the_files_that_are_here(
    head: Head, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small.yaml").write_text("trials: 1")
    code, output, errors = search(head, tmp_path, "--config", "mine/small.yaml", *flags(shared, "submitted"))
    assert code == 0, output + errors
    assert [one.state for one in trials_in(shared, "submitted")] == [TrialState.COMPLETE] * 2
    best = shared / "submitted" / "best"
    assert json.loads((best / "config.json").read_text())["vocab_size"] == 4096
    assert str(best) in output
    assert "--submit" not in output


@pytest.mark.parametrize(
    ("token", "reason"), [("RAY_AUTH_TOKEN", "the cluster has another token"), ("RAY_AUTH_TOKEN_PATH", "no token")]
)
def test_wrong_or_missing_token_is_told_in_one_line(head: Head, tmp_path: Path, token: str, reason: str) -> None:
    code, output, errors = search(head, tmp_path, "--budget", "60%", **{token: "/not/there"})
    assert (code, output) == (2, "")
    assert reason in errors
    assert errors.count("\n") == 1


def test_results_in_the_folder_that_ray_removes_are_refused_with_code_2(head: Head, tmp_path: Path) -> None:
    code, output, _ = search(head, tmp_path, "--model", "mini", "--budget", "60%")
    assert code == 2
    assert "set NAS_OUTPUT on the cluster" in output.splitlines()[-1]


BY_HAND = """
import json, sys
from nas.cluster.remote_job import Job, connect

job = Job(connect(sys.argv[1]), sys.argv[1], sys.argv[2])
job.start(sys.argv[3], json.loads(sys.argv[4]))
sys.exit(job.follow())
"""


def run_by_hand(
    head: Head, name: str, command: str, runtime: str = "{}", address: str = ""
) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", BY_HAND, address or head.address, name, command, runtime]
    return subprocess.run(arguments, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=PATIENCE)


class Tunnel:
    """Passes connections on to ``port``, as ssh does. ``cut`` breaks those that are open and refuses others."""

    def __init__(self, port: int) -> None:
        self._port, self._open, self._broken = port, [], False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            if self._broken:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._port))
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := one.recv(65536):
                other.sendall(block)
            other.shutdown(socket.SHUT_WR)

    def cut(self, seconds: float) -> None:
        self._broken = True
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._broken = False


def test_output_and_exit_code_come_through_a_tunnel_that_breaks(head: Head, tmp_path: Path) -> None:
    tunnel, beats = Tunnel(int(head.address.rpartition(":")[2])), tmp_path / "beats"
    command = f"for i in $(seq 30); do echo déjà vu $i; echo $i > {beats}; sleep 0.2; done; exit 3"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_by_hand, head, "tunnelled", command, address=tunnel.address)
        while not beats.exists() and not running.done():
            time.sleep(0.1)
        time.sleep(1)
        tunnel.cut(seconds=2)
        done = running.result()
    assert done.returncode == 3, done.stderr
    seen = [line for line in done.stdout.splitlines() if line.startswith("déjà vu")]
    assert seen == [f"déjà vu {number}" for number in range(1, 31)]
    assert "the job goes on" in done.stderr


def test_job_that_never_starts_is_told(head: Head) -> None:
    done = run_by_hand(head, "never", "true", json.dumps({"working_dir": "gcs://_ray_pkg_0000000000000000.zip"}))
    assert "did not start the job" in done.stderr.splitlines()[-1]


def test_ctrl_c_stops_the_job_and_waits_for_its_end(head: Head, shared: Path, tmp_path: Path) -> None:
    started = start_search(head, tmp_path, *flags(shared, "stopped", "--tokens-per-trial", "1M"))
    while STARTED not in (tmp_path / "output").read_text() and started.poll() is None:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    code, output, errors = ended(started, tmp_path)
    assert code == 130, output + errors
    assert "to continue: " in output
    assert f"--submit {head.address}" in errors.splitlines()[-1]
    assert not [one for one in psutil.process_iter(["cmdline"]) if "stopped" in (one.info["cmdline"] or [])]
