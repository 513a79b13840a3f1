"""A Ray that does not start, or that dies, ends a search with one line and exit code 2."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import ray
from bounded import run_bounded
from driving import Driver
from optuna.trial import TrialState
from small_search import ROOT, arguments, clean_environment, trials_in, write_text

from nas.cluster.session import ray_session
from nas.cluster.watch import RAY_PROCESSES
from nas.planning.settings import SearchSettings, parse_arguments
from search_spaces.errors import InputError

# What Ray does at its start: it puts its own answer to SIGTERM in place, then starts processes for some seconds.
EARLY = """
import os, signal, sys
import ray
from nas.planning.settings import parse_arguments
from nas.cluster.session import ray_session
from nas.cluster.watch import RAY_PROCESSES

def told_to_end(**options):
    if sys.argv[1] == "after Ray's own":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("the signal was not heard")

ray.init = told_to_end
try:
    with ray_session(parse_arguments(["--budget", "60%"])[0]):
        pass
except KeyboardInterrupt:
    print("as Ctrl-C")
"""

# A driver that waits for a task without an end, as for a long trial.
BEREFT = """
import sys, time
import psutil, ray
from nas.planning.settings import parse_arguments
from nas.cluster.session import ray_session
from nas.cluster.watch import RAY_PROCESSES
from search_spaces.errors import InputError

try:
    with ray_session(parse_arguments(["--budget", "60%"])[0]):
        endless = ray.remote(num_cpus=0)(lambda: time.sleep(10**6)).remote()
        ray.wait([endless], timeout=1)
        (process,) = (one for one in psutil.Process().children() if one.name() == sys.argv[1])
        process.kill()
        ray.get(endless)
except InputError as error:
    print(error)
"""


def settings(*flags: str) -> SearchSettings:
    return parse_arguments(["--budget", "60%", *flags])[0]


def refused(monkeypatch: pytest.MonkeyPatch, error: Exception, *flags: str) -> str:
    """The message for a Ray that raises ``error`` at its start."""

    def init(**options: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError) as raised, ray_session(settings(*flags)):
        pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_with_a_long_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As batch systems make them. The error is Ray's own."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(long))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
    with pytest.raises(InputError) as raised, ray_session(settings()):
        pass
    expected = f"{variable} {str(long)!r}: too long for the sockets of Ray; set RAY_TMPDIR to a short folder"
    assert str(raised.value).startswith(expected)


def test_a_start_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Exception("The current node timed out during startup. This could happen because some of the raylet failed")
    assert refused(monkeypatch, late).startswith("Ray did not start within 30 s")


def test_any_other_reason_is_given_and_is_not_about_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refused(monkeypatch, RuntimeError("Failed to start GCS.\n Last 2 lines"))
    assert text.startswith("Ray does not start on this machine: Failed to start GCS. Last 2 lines; its logs in ")
    assert "--address" not in text
    text = refused(monkeypatch, ConnectionError("nobody\nthere"), "--address", "10.0.0.9:6379")
    assert text.startswith("--address '10.0.0.9:6379': no Ray cluster answers there (nobody there)")


@pytest.mark.parametrize("when", ["at once", "after Ray's own"])
def test_sigterm_before_ray_is_up_is_as_ctrl_c(when: str) -> None:
    program = [sys.executable, "-c", EARLY, when]
    done = run_bounded(program, cwd=ROOT, env=clean_environment())
    assert (done.returncode, done.stdout) == (0, "as Ctrl-C\n"), done.stderr


@pytest.mark.parametrize("name", RAY_PROCESSES)
def test_a_ray_that_dies_while_the_driver_waits_for_it_is_one_line(name: str) -> None:
    done = run_bounded([sys.executable, "-c", BEREFT, name], cwd=ROOT, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"Ray's process {name} has died")
    assert "Fatal Python error" not in done.stderr


def test_a_gcs_server_that_dies_ends_a_search_with_one_line_and_the_same_command_continues(
    tmp_path: Path, tiny_teacher_folder: Path
) -> None:
    """The driver is in Tune then, in calls that no signal interrupts."""
    changes = {"trials": 2, "tokens_per_trial": 8_192, "workers": 1, "scheduler": "none", "baselines": "no"}
    flags = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path, "bereft", **changes)
    command = ["python", "-m", "nas.search", *flags]
    driver = Driver(command, tmp_path)
    driver.wait_for(re.compile("of 8,192 tokens, complete"))
    (process,) = (one for one in driver.family() if one.name() == "gcs_server")
    process.kill()
    assert driver.finish() == 2
    last = "".join(driver.lines).splitlines()
    assert last[-1].startswith("error: Ray's process gcs_server has died")
    assert "Traceback" not in "".join(last)
    (kept,) = (trial for trial in trials_in(tmp_path, "bereft") if trial.state == TrialState.COMPLETE)

    again = Driver(command, tmp_path)
    assert again.finish() == 0, "".join(again.lines)
    complete = [trial for trial in trials_in(tmp_path, "bereft") if trial.state == TrialState.COMPLETE]
    assert len(complete) == 2
    assert complete[0] == kept
