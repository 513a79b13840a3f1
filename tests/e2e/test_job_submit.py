"""`ray job submit`, as the README gives it, against a head with token authentication that this test starts."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
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


def test_search_submitted_as_a_job(head: Head, tmp_path: Path) -> None:
    sizes = "--trials 2 --tokens-per-trial 1024 --sequence-length 64 --batch-tokens 256 --validation-tokens 1024"
    rest = "--calibration-samples 4 --screened 4 --scheduler none --baselines no --test-tokens 1024"
    small = [*sizes.split(), *rest.split()]
    where = ["--output", str(tmp_path), "--study", "submitted"]
    done = head.submit("python", "-m", "nas.search", "--model", "mini", "--budget", "60%", *small, *where)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "succeeded" in log
    assert [one.state for one in trials_in(tmp_path, "submitted")] == [TrialState.COMPLETE] * 2
    assert len(list((tmp_path / "submitted" / "finals").glob("*/result.json"))) == 2
    best = tmp_path / "submitted" / "best"
    assert json.loads((best / "config.json").read_text())["vocab_size"] == 4096
    assert (best / "model.safetensors").stat().st_size > 1_000_000
    assert str(best) in log
