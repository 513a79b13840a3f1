"""The SQLite file of a study: created whole, waited for when it is locked, and refused by name when it is not sound.

Every error of SQLite becomes one line that names the file, the rule and the way out.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import event

from nas.study.interruption import uncut
from nas.study.only_writer import OnlyWriter
from search_spaces.errors import InputError
from trials.storage.durable import create_file
from trials.storage.lease import held
from trials.storage.redact import redacted_message

SQLITE = "sqlite:///"
LOCKED_SECONDS = 90.0  # as long as another process may hold the database
SOON_SECONDS = 2.0  # after which the log says who holds it
VALUES = {
    "study_user_attributes": "select value_json from study_user_attributes",
    "study_system_attributes": "select value_json from study_system_attributes",
    "trial_user_attributes": "select value_json from trial_user_attributes",
    "trial_system_attributes": "select value_json from trial_system_attributes",
}  # of the tables of Optuna that hold JSON
AGAIN = "the same command continues"

log = logging.getLogger(__name__)


def file_of(url: str) -> Path | None:
    """The file of the SQLite database ``url``; None for any other database."""
    path = Path(url.removeprefix(SQLITE))
    return path if url.startswith(SQLITE) and path.name not in ("", ":memory:") else None


@contextmanager
def opening(url: str, *, reading: bool = False) -> Iterator[None]:
    """Hold this block around the opening of the database ``url``. Databases other than an SQLite file need nothing.

    Two processes that create one SQLite file at once leave it broken, so the second waits. A new file appears when it
    is complete. Who is only ``reading`` creates nothing, and may read a file on a read-only disk.

    Raises InputError when the file is empty, no database, damaged, locked for `LOCKED_SECONDS`, or read-only. The check
    reads the whole file.
    """
    path = file_of(url)
    if path is None or not path.parent.is_dir():  # a lease would need the folder
        yield
        return
    if reading:
        _check(url, path)
        yield
        return
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"storage {url}: {path} is read-only; make it writable, or give another --output or --storage")
    with held(path.with_name(f"{path.name}.lease"), f"{path} in hand"):
        if path.is_file():
            _check(url, path)
        else:
            create_file(path, _create)
        yield


def storage_of(url: str, *, reading: bool = False, alone: bool = False) -> BaseStorage:
    """Optuna's storage for ``url``. On SQLite it waits `LOCKED_SECONDS` for a lock, and notices when its file is gone.

    Whoever removes the file while a search has it open leaves the search an open file without a name. Its content is
    put back, and InputError is raised. Who is only ``reading``, as the page of a search is, leaves that to the search.
    Who writes ``alone``, as a driver does, gets an `OnlyWriter`.
    """
    path = file_of(url)
    if path is None or not path.parent.is_dir():
        return get_storage(url)
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCKED_SECONDS}})
    if reading:
        return uncut(get_storage(storage))
    known, told, witness = _identity(path), list[str](), sqlite3.connect(path, check_same_thread=False)
    witness.execute("pragma schema_version").fetchone()  # opens the file; other connections may open a later one

    @event.listens_for(storage.engine, "begin")
    def _still_there(connection: Any) -> None:
        if not told and _identity(path) != known:
            told.append(f"storage {url}: {_kept(witness, path)}")
        if told:  # what is put back stays as it is: the search goes on to write to the old file while it ends
            raise InputError(told[0])

    return uncut(OnlyWriter(storage) if alone else get_storage(storage))


@contextmanager
def faults_named(url: str) -> Iterator[None]:
    """Turn an error of the block that comes from the SQLite database ``url`` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        path, fault = file_of(url), _sqlite_error(error)
        if path is None or fault is None or "full" in str(fault):  # a full disk is told by who knows what is needed
            raise
        raise InputError(f"storage {url}: {_told(fault, path)}") from error


def holders(path: Path) -> str:
    """The processes of this machine that hold a lock of the file ``path``, in words, as far as Linux tells them."""
    try:
        found, locks = os.stat(path), Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return "another process"
    own = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    numbers = {int(fields[4]) for fields in map(str.split, locks) if len(fields) > 5 and fields[5] == own}
    return ", ".join(f"process {one}{_command(one)}" for one in sorted(numbers - {os.getpid()})) or "another process"


def _command(number: int) -> str:
    try:
        return f" ({redacted_message(' '.join(psutil.Process(number).cmdline()), 80)})"
    except psutil.Error:
        return ""


def _create(path: Path) -> None:
    """Create the tables of Optuna in the new file ``path``."""
    storage = RDBStorage(f"{SQLITE}{path}")
    storage.remove_session()
    storage.engine.dispose()


def _check(url: str, path: Path) -> None:
    if path.stat().st_size == 0:
        raise InputError(f"storage {url}: the file is empty, so its studies are lost; {_ways(path)}")
    try:
        found = _problem(path) or _unreadable(path)
    except sqlite3.DatabaseError as error:
        raise InputError(f"storage {url}: {_told(error, path)}") from error
    if found:
        raise InputError(f"storage {url}: damaged ({redacted_message(found, 150)}); {_ways(path)}")


def _problem(path: Path) -> str:
    """What is wrong with the file; empty for nothing. Waits for a lock, and says so."""
    for seconds in (SOON_SECONDS, LOCKED_SECONDS - SOON_SECONDS):
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=seconds, uri=True)) as database:
                (found,) = database.execute("pragma quick_check(1)").fetchone()
                return "" if found == "ok" else str(found)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or seconds != SOON_SECONDS:
                raise
            log.info("%s is locked by %s; waiting up to %.0f s", path, holders(path), LOCKED_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _unreadable(path: Path) -> str:
    """The table with a value that is no JSON, which SQLite itself does not mind; empty if there is none."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=LOCKED_SECONDS, uri=True)) as database:
        known = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        for table, query in VALUES.items():
            for (value,) in database.execute(query) if table in known else ():
                try:
                    json.loads(value)
                except (TypeError, ValueError) as error:
                    return f"{table}: {error}"
    return ""


def _told(error: sqlite3.Error, path: Path) -> str:
    """The fault of the file, and the way out."""
    text = redacted_message(error, 150)
    if "locked" in text:
        return (
            f"locked for {LOCKED_SECONDS:.0f} s by {holders(path)}; end what holds it: {path}; what is finished is "
            f"kept, and {AGAIN}"
        )
    if "readonly" in text:
        return f"read-only ({text}); make it writable: {path}; {AGAIN}"
    if isinstance(error, sqlite3.OperationalError):
        return f"cannot be read or written ({text}); look at its disk: {path}; {AGAIN}"
    return f"damaged, or no SQLite database ({text}); {_ways(path)}"


def _ways(path: Path) -> str:
    return f"put a copy back, or move it away to begin anew: {path}; a trial whose folder is there is not trained again"


def _sqlite_error(error: BaseException | None) -> sqlite3.Error | None:
    while error is not None and not isinstance(error, sqlite3.Error):
        error = error.__cause__ or error.__context__
    return error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _kept(connection: sqlite3.Connection, path: Path) -> str:
    """Copy what the open ``connection`` still sees to ``path``, or beside it if another file is there."""
    there = path.exists() and path.stat().st_size > 0  # SQLite itself leaves an empty one where it finds none
    place = path.with_name(f"{path.name}.kept") if there else path

    def copy(new: Path) -> None:
        with closing(sqlite3.connect(new)) as target:
            connection.backup(target)

    gone = f"{path} was {'replaced by another file' if there else 'removed'} while the search ran"
    try:
        create_file(place, copy)
    except (OSError, sqlite3.Error) as error:
        return f"{gone}, and could not be put back ({redacted_message(error, 100)}); {_ways(path)}"
    way = f"what the search had is in {place}; choose one of the two" if there else "it is there again"
    return f"{gone}; {way}; nothing that is finished is lost; {AGAIN}"
