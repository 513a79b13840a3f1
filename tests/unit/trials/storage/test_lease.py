"""A lease has one holder. It outlasts clocks that jump, needs no flock, and passes on when its holder is dead."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import Timeout

from trials.storage import lease as leases
from trials.storage.lease import held, holder, is_here, lease

HOUR = 3600.0
MADE_UP = "filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken=aa\nduration={duration}\nstart=5\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)


def on_another_machine(path: Path) -> None:
    """A lease of a process that this machine knows nothing of."""
    path.write_text(MADE_UP.format(duration=leases.LEASE_SECONDS))


def test_a_lease_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "one.lease"
    assert (holder(path), is_here(path)) == ("", False)
    with held(path, "it"):
        assert (holder(path), is_here(path)) == (f"process {os.getpid()} on {socket.gethostname()}", True)
        with pytest.raises(Timeout):
            lease(path).acquire(timeout=0)
    assert list(tmp_path.iterdir()) == []


def test_a_holder_elsewhere_that_does_nothing_loses_its_lease(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "one.lease"
    on_another_machine(path)
    assert not is_here(path)
    caplog.set_level(logging.INFO)
    with held(path, "it in hand"):
        assert is_here(path)
    assert "waiting for process 1 on elsewhere, which has it in hand" in caplog.text


def test_a_live_holder_keeps_its_lease_though_its_clock_jumps(tmp_path: Path) -> None:
    """The times of the file run backwards by an hour a beat, as on a server whose clock is being set back."""
    path = tmp_path / "one.lease"
    on_another_machine(path)
    other, began = lease(path), time.monotonic()
    for beat in range(40):
        os.utime(path, times=(began - HOUR * beat,) * 2)
        with pytest.raises(Timeout):
            other.acquire(timeout=leases.BEAT_SECONDS)
    assert time.monotonic() - began > 2 * leases.LEASE_SECONDS


@pytest.mark.parametrize("shift", [-HOUR, 0.0, HOUR])
def test_a_dead_holder_loses_its_lease_whatever_the_time_of_its_file(tmp_path: Path, shift: float) -> None:
    path = tmp_path / "one.lease"
    on_another_machine(path)
    os.utime(path, times=(time.time() + shift,) * 2)
    with pytest.raises(Timeout):
        lease(path).acquire(timeout=0)  # nobody believes the time of a file
    with held(path, "it"):
        assert is_here(path)


def test_an_empty_file_of_a_writer_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "one.lease"
    path.touch()
    with held(path, "it"):
        assert is_here(path)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.unlink(), "{path} was removed"),
        (lambda path: (path.unlink(), on_another_machine(path)), "process 1 on elsewhere holds {path}"),
    ],
    ids=["removed", "taken"],
)
def test_a_holder_hears_that_its_lease_is_lost(tmp_path: Path, harm: object, reason: str) -> None:
    path, lost = tmp_path / "one.lease", list[str]()
    own = lease(path, lost.append)
    own.acquire()
    harm(path)  # type: ignore[operator]
    while not lost:
        time.sleep(0.01)
    own.release()
    assert lost == [reason.format(path=path)]
    assert path.exists() == (holder(path) != "")  # nobody removes what another process holds


HOLD = """
import sys, time
from pathlib import Path
from trials.storage.lease import held
with held(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lease_of_a_process_that_was_killed_here_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # with the real times
    path = tmp_path / "one.lease"
    process = start_holder(path)
    with pytest.raises(Timeout):
        lease(path).acquire(timeout=0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    own = lease(path)
    own.acquire(timeout=0)
    own.release()


def refuse_flock(number: int) -> None:
    """From now on ``flock`` fails in this process and its children, as on a mount without it. Linux, x86-64 or arm64.

    A seccomp filter answers the system call with the error ``number``, so that no library is replaced.
    """
    call = {"x86_64": 73, "aarch64": 32}[os.uname().machine]
    statements = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in statements))
    program = ctypes.create_string_buffer(struct.pack("HP", len(statements), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS, without which nobody may add a filter
    assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


BUILD = """
import fcntl, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_lease import refuse_flock
from trials.storage.cache import Cache

refuse_flock(int(sys.argv[1]))
try:
    fcntl.flock(sys.stdin, fcntl.LOCK_EX)
except OSError as error:
    assert error.errno == int(sys.argv[1])

def write(folder):
    time.sleep(0.5)
    (folder / "data").write_text("whole")
    print("built")

Cache(Path(sys.argv[2])).build("corpus", "key", write)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK], ids=["no such call", "no locks"])
def test_four_processes_build_an_entry_once_where_there_is_no_flock(tmp_path: Path, number: int) -> None:
    arguments = [sys.executable, "-W", "error", "-c", BUILD, str(number), str(tmp_path), str(Path(__file__).parent)]
    builders = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0] * 4
    assert sorted(said) == ["", "", "", "built\n"]
