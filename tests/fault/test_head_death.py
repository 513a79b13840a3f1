"""A search on an existing cluster whose head is lost: one line, exit code 2, and the same command on a new head."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from driving import Driver
from optuna.trial import FrozenTrial, TrialState
from small_search import arguments, clean_environment, trials_in, write_text

pytestmark = pytest.mark.fault_slow

PATIENCE = 120  # seconds in which a head must be up
STUDY, TOKENS = "headless", 32_768
# Ray's own patience with a silent head, in seconds; half of it is that of a search. The default is 60.
SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_gcs_rpc_server_reconnect_timeout_s": "30"}


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def head(port: int) -> Iterator[psutil.Process]:
    """A head with one CPU on this machine, in a session of its own. At the end all its processes are killed."""
    flags = ["--head", "--block", f"--port={port}", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    flags += ["--include-dashboard=false", "--dashboard-agent-listen-port=0", f"--object-store-memory={80 * 2**20}"]
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # sockets need short paths
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *flags, f"--temp-dir={folder}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        started = subprocess.Popen(command, env=clean_environment(**SETTINGS), **quiet)
        process = psutil.Process(started.pid)
        try:
            wait_for_head(port, started)
            yield process
        finally:
            kill_all(process)
            started.wait()


def wait_for_head(port: int, started: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and started.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the head does not start")


def kill_all(process: psutil.Process) -> None:
    """SIGKILL to the head and to everything that it has started."""
    if not process.is_running():
        return
    for one in [process, *process.children(recursive=True)]:
        if one.is_running():
            os.kill(one.pid, signal.SIGKILL)


def kill_gcs(process: psutil.Process) -> None:
    """SIGKILL to the one process of the head that knows the cluster."""
    for one in process.children(recursive=True):
        if one.name() == "gcs_server":
            one.kill()


def search_that_loses_its_head(
    kill: Callable[[psutil.Process], None], port: int, teacher: Path, output: Path
) -> list[str]:
    """Run a search until ``kill`` takes its head away, and see how it ends. Returns its command."""
    changes = {"trials": 2, "tokens_per_trial": TOKENS, "workers": 1, "scheduler": "none", "baselines": "no"}
    flags = arguments(teacher, write_text(output), output, STUDY, address=f"127.0.0.1:{port}", **changes)
    command = ["python", "-m", "nas.search", *flags]
    with head(port) as process:
        driver = Driver(command, output, **SETTINGS)
        driver.wait_for(re.compile(f"of {TOKENS:,} tokens, complete"))
        driver.wait_for(re.compile(f"after {TOKENS // 2:,} of"))
        kill(process)
        began = time.monotonic()
        code = driver.finish()
    text = "".join(driver.lines)
    print(f"{kill.__name__}: ended after {time.monotonic() - began:.1f} s")
    assert code == 2, text
    (line,) = [one for one in text.splitlines() if one.startswith("error: ")]
    assert re.search(r"(the head of the Ray cluster|Ray on this node,) at \S+:\d+ has not answered for", line)
    assert line.endswith("finished trials are kept, and the same command continues")
    assert "Traceback" not in text
    return command


def complete(output: Path) -> list[FrozenTrial]:
    return [one for one in trials_in(output, STUDY) if one.state == TrialState.COMPLETE]


def test_a_gcs_server_that_dies_ends_the_search_with_one_line(
    port: int, tmp_path: Path, tiny_teacher_folder: Path
) -> None:
    search_that_loses_its_head(kill_gcs, port, tiny_teacher_folder, tmp_path)
    assert len(complete(tmp_path)) == 1


def test_the_same_command_continues_on_a_new_head(port: int, tmp_path: Path, tiny_teacher_folder: Path) -> None:
    command = search_that_loses_its_head(kill_all, port, tiny_teacher_folder, tmp_path)
    (kept,) = complete(tmp_path)
    with head(port):
        again = Driver(command, tmp_path, **SETTINGS)
        assert again.finish() == 0, "".join(again.lines)
    first, second = complete(tmp_path)
    assert first == kept
    assert second.user_attrs["metrics"]["resumed_from"] >= TOKENS // 4
