"""Database servers of the tests' own on loopback, where the machine has their programs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

PASSWORD = "s3cret-of-the-tests"
NOBODY = "postgres" if Path("/var/lib/postgresql").exists() else "nobody"  # the servers refuse to run as root
BOOTSTRAP = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")


class DatabaseServer:
    """A server with the empty database ``nas`` and the user ``nas``. `kill` and `start` are a crash and a restart."""

    scheme, wrong_password, missing_database = "", "", ""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {"user": NOBODY} if os.getuid() == 0 else {}
        if self._as:
            shutil.chown(folder, NOBODY)
        self.prepare()
        self.start()
        self.finish()

    def prepare(self) -> None:
        """Make the files of the server."""
        raise NotImplementedError

    def command(self) -> list[object]:
        """What starts the server."""
        raise NotImplementedError

    def finish(self) -> None:
        """What a running server still needs."""

    def cut(self) -> None:
        """End all connections, as a network does that is interrupted for a moment."""
        raise NotImplementedError

    def url(self, password: str = PASSWORD, database: str = "nas", port: int | None = None) -> str:
        """The Optuna URL."""
        return f"{self.scheme}://nas:{password}@127.0.0.1:{port or self.port}/{database}"

    def run(self, command: list[object], text: str | None = None) -> None:
        """Run a program of the server to its end."""
        words, environment = list(map(str, command)), {**os.environ, "PGPASSWORD": PASSWORD}
        keywords: dict[str, Any] = {"cwd": self.folder, "env": environment, **self._as}
        subprocess.run(words, check=True, capture_output=True, text=True, input=text, **keywords)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder, **self._as}
        self._process = subprocess.Popen(list(map(str, self.command())), **quiet)
        limit = time.monotonic() + 60
        while not self.answers():
            assert self._process.poll() is None, f"{self.scheme} does not start"
            assert time.monotonic() < limit, f"{self.scheme} does not answer"
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether the server takes connections."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def kill(self) -> None:
        """End the server at once, without a word to its clients. All its processes are gone then."""
        if self._process is None:
            return
        family = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        self._process.kill()
        self._process.wait()
        for one in psutil.wait_procs(family, timeout=30)[1]:
            one.kill()
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)


class Postgres(DatabaseServer):
    """PostgreSQL."""

    scheme = "postgresql"
    wrong_password, missing_database = "password authentication failed", 'database "nowhere" does not exist'

    def prepare(self) -> None:
        """Make the files of the server."""
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        who = ["-U", "nas", "--pwfile", self.folder / "password", "-A", "scram-sha-256"]
        self.run([self.programs / "initdb", "-D", self.folder / "data", "-E", "UTF8", *who])

    def command(self) -> list[object]:
        """What starts the server."""
        options = ["-h", "127.0.0.1", "-p", self.port, "-k", self.folder, "-c", "fsync=off"]
        return [self.programs / "postgres", "-D", self.folder / "data", *options]

    def finish(self) -> None:
        """Make the database."""
        self.run([self.programs / "createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "nas", "nas"])

    def cut(self) -> None:
        """End all connections."""
        import psycopg

        with psycopg.connect(self.url(database="postgres"), autocommit=True) as own:
            own.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'nas'")

    def answers(self) -> bool:
        """Whether the server takes connections."""
        ask = [str(self.programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ask, capture_output=True, check=False).returncode == 0


class MariaDB(DatabaseServer):
    """MariaDB, which speaks MySQL's language."""

    scheme, wrong_password, missing_database = "mysql", "Access denied for user 'nas'", "Unknown database 'nowhere'"

    def prepare(self) -> None:
        """Make the files of the server, with the database and the user."""
        scripts = [(self._share / name).read_text() for name in BOOTSTRAP]
        user = f"create user if not exists nas@'%' identified by '{PASSWORD}';\ngrant all on *.* to nas@'%';\n"
        (self.folder / "first.sql").write_text(f"create database if not exists nas;\n{user}")
        (self.folder / "data").mkdir()
        if self._as:
            shutil.chown(self.folder / "data", NOBODY)
        text = "\n".join(["create database mysql;", "use mysql;", *scripts, ""])
        self.run([*self._server, "--bootstrap", "--log-warnings=0"], text)

    def command(self) -> list[object]:
        """What starts the server."""
        where = ["--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self.folder}/socket"]
        return [*self._server, *where, f"--init-file={self.folder}/first.sql"]

    def cut(self) -> None:
        """End all connections."""
        import pymysql

        with pymysql.connect(host="127.0.0.1", port=self.port, user="nas", password=PASSWORD) as own:
            asking = own.cursor()
            asking.execute("select id from information_schema.processlist where db = 'nas' and id <> connection_id()")
            for (number,) in asking.fetchall():
                asking.execute(f"kill {number}")

    @property
    def _share(self) -> Path:
        return self.programs.parent / "share" / "mysql"

    @property
    def _server(self) -> list[object]:
        small = ["--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=2"]
        own = [f"--datadir={self.folder}/data", f"--lc-messages-dir={self._share}"]
        return [self.programs / "mariadbd", "--no-defaults", *own, *small]


PROGRAMS = {Postgres: ("initdb", "/usr/lib/postgresql/*/bin"), MariaDB: ("mariadbd", "/usr/sbin")}


@contextmanager
def database_server(kind: type[DatabaseServer]) -> Iterator[DatabaseServer]:
    """A server during the block. The test is skipped where its programs are not installed."""
    program, places = PROGRAMS[kind]
    found = shutil.which(program) or next(map(str, Path("/").glob(f"{places[1:]}/{program}")), None)
    if found is None:
        package = "postgresql" if kind is Postgres else "mariadb-server-core"
        pytest.skip(f"{kind.__name__} is not installed: apt-get install {package}")
    folder = Path(tempfile.mkdtemp(prefix="nas-database-"))  # where another user can go
    folder.chmod(0o755)
    server = None
    try:
        server = kind(Path(found).resolve().parent, folder)
        yield server
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
