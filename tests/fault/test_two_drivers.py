"""One driver a study: a second one is refused by name, and takes over only from a dead one, here and elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

LEASE, BEAT = 3.0, 0.25  # seconds, in these tests

DRIVE = f"""
import signal, sys, time
from pathlib import Path
from search_spaces.errors import InputError
from trials.storage import lease

lease.LEASE_SECONDS, lease.BEAT_SECONDS = {LEASE}, {BEAT}

import optuna
from nas.driver import in_database as shared_driver
from nas.study.database import opening, storage_of
from nas.driver.in_folder import only_driver

optuna.logging.set_verbosity(optuna.logging.WARNING)
shared_driver.SETTLED_SECONDS = 0.5

def driving(folder, shared):
    if not shared:
        return only_driver(Path(folder), "s", say)
    url = "sqlite:///" + folder + "/studies.db"
    with opening(url):
        study = optuna.create_study(storage=storage_of(url), study_name="s", load_if_exists=True)
    study.recall, study.remember = lambda key: study.user_attrs.get(key), study.set_user_attr
    return shared_driver.only_driver_of(study, "s", say)

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
say = lambda text: print(text, flush=True)
try:
    with driving(*sys.argv[1:]):
        say("driving")
        time.sleep(600)
except InputError as error:
    say(f"error: {{error}}")
    sys.exit(2)
"""

# Another machine, as far as a process can tell: a host name and process numbers of its own.
ELSEWHERE = [
    "unshare",
    "-U",
    "-r",
    "-u",
    "-p",
    "-f",
    "--kill-child",
    "sh",
    "-c",
    'hostname elsewhere && exec "$@"',
    "-",
]

Start = Callable[..., "Driving"]


class Driving:
    """A process that drives the study in ``folder``, or is refused. With ``shared`` only the database is shared."""

    def __init__(self, folder: Path, elsewhere: bool, shared: bool) -> None:
        command = [*(ELSEWHERE if elsewhere else []), sys.executable, "-c", DRIVE, str(folder), "shared" * shared]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        """The next line that it says; empty at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def python(self) -> psutil.Process:
        """The process of Python itself, below `ELSEWHERE`."""
        started = psutil.Process(self.process.pid)
        return next((one for one in started.children(recursive=True) if "python" in one.name()), started)

    def end(self) -> None:
        """Kill it, whatever its state."""
        for one in psutil.Process(self.process.pid).children(recursive=True):
            one.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Driving] = []

    def begin(elsewhere: bool = False, shared: bool = False) -> Driving:
        if elsewhere and (not shutil.which("unshare") or subprocess.run([*ELSEWHERE, "true"]).returncode):
            pytest.skip("no other machine: unshare may not make namespaces here")
        (tmp_path / "shared").mkdir(exist_ok=True)
        started.append(Driving(tmp_path / ("shared" if shared else "s"), elsewhere, shared))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.end()


def test_a_second_driver_is_refused_at_once_with_who_holds_the_study_and_since_when(
    start: Start, tmp_path: Path
) -> None:
    first = start()
    assert first.line() == "driving"
    second = start()
    said = second.line()
    who = rf"process {first.process.pid} on {socket.gethostname()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(
        rf"error: study 's': another search is running it, {who}, in {tmp_path}/s; wait for it, or give another .*",
        said,
    )
    assert second.process.wait() == 2
    assert first.process.poll() is None


def test_a_driver_that_stands_still_here_keeps_its_study_and_a_dead_one_is_replaced_at_once(start: Start) -> None:
    first = start()
    assert first.line() == "driving"
    first.process.send_signal(signal.SIGSTOP)
    time.sleep(LEASE + 1)
    assert "another search is running it" in start().line()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert start().line() == "driving"


def test_a_live_driver_on_another_machine_keeps_its_study(start: Start) -> None:
    first = start(elsewhere=True)
    assert first.line() == "driving"
    second = start()
    assert re.match(r"study s: process \d+ on elsewhere, since .* takes over when .* within 3 s", second.line())
    assert re.match(r"error: .* process \d+ on elsewhere, since .* wait for it", second.line())
    assert first.process.poll() is None


def test_a_dead_driver_on_another_machine_is_replaced(start: Start) -> None:
    first = start(elsewhere=True)
    assert first.line() == "driving"
    first.python().kill()
    first.process.wait()
    began, second = time.monotonic(), start()
    assert "may be running it" in second.line()
    assert "shows no sign of life; this search takes over" in second.line()
    assert second.line() == "driving"
    assert time.monotonic() - began >= LEASE


def test_a_driver_whose_machine_stood_still_ends_when_another_has_taken_over(start: Start) -> None:
    first = start(elsewhere=True)
    assert first.line() == "driving"
    first.python().suspend()
    second = start()
    assert [second.line() for _ in range(3)][-1] == "driving"
    first.python().resume()
    said = first.line()
    assert said.startswith(f"error: study 's': this search has ended, because process {second.process.pid} on ")
    assert first.process.wait() == 2
    assert second.process.poll() is None
    assert os.path.exists(f"{second.process.args[-2]}/driver.lease")  # type: ignore[index]


def test_a_database_that_several_folders_share_has_one_driver(start: Start) -> None:
    first = start(shared=True)
    assert first.line() == "driving"
    second = start(shared=True)
    assert f"process {first.process.pid} on {socket.gethostname()}, since" in second.line()
    assert second.line().startswith("error: study 's': another search is running it, process ")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert start(shared=True).line() == "driving"


def test_a_driver_of_a_shared_database_that_has_ended_leaves_it_free(start: Start) -> None:
    first = start(elsewhere=True, shared=True)
    assert first.line() == "driving"
    first.python().terminate()
    first.process.wait()
    assert start(shared=True).line() == "driving"


def test_a_driver_of_a_shared_database_that_stood_still_ends_when_another_has_taken_over(start: Start) -> None:
    first = start(elsewhere=True, shared=True)
    assert first.line() == "driving"
    first.python().suspend()
    second = start(shared=True)
    assert [second.line() for _ in range(3)][-1] == "driving"
    first.python().resume()
    assert f"has ended, because process {second.process.pid} on {socket.gethostname()}" in first.line()
    assert first.process.wait() == 2
    assert second.process.poll() is None
