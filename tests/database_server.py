"""A PostgreSQL server of the tests' own on loopback, if the machine has the program."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

PASSWORD = "s3cret-of-the-tests"
NOBODY = "postgres"  # the server refuses to run as root


class PostgresServer:
    """A server with the empty database ``nas``. `kill` and `start` are what a crash and a restart do."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder, self._process = programs, folder, None
        self._as = {"user": NOBODY, "group": NOBODY} if os.getuid() == 0 else {}
        self.port = _free_port()
        (folder / "password").write_text(PASSWORD)
        if self._as:
            shutil.chown(folder, NOBODY, NOBODY)
            shutil.chown(folder / "password", NOBODY, NOBODY)
        self._run("initdb", "-D", folder / "data", "-U", "nas", "--pwfile", folder / "password", "-A", "scram-sha-256")
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "nas", "nas")

    def url(self, password: str = PASSWORD, database: str = "nas", port: int | None = None) -> str:
        return f"postgresql://nas:{password}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self._folder), "-c", "fsync=off"]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", self._folder / "data", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            **self._as,
        )
        limit = time.monotonic() + 60
        while self._ready() != 0:
            assert time.monotonic() < limit, "PostgreSQL does not start"
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server at once, without a word to its clients. All its processes are gone then."""
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for one in psutil.wait_procs(family, timeout=30)[1]:
            one.kill()
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def _ready(self) -> int:
        ask = [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ask, capture_output=True, check=False).returncode

    def _run(self, program: str, *arguments: object) -> None:
        command = [self._programs / program, *map(str, arguments)]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, env=environment, **self._as)


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A server during the block. The test is skipped where PostgreSQL is not installed."""
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="nas-postgres-"))  # where another user can go
    folder.chmod(0o755)
    server = None
    try:
        server = PostgresServer(Path(found).resolve().parent, folder)
        yield server
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
