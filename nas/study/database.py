"""The SQLite file of a study: one process creates it at a time, and a damaged file is refused by name."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from optuna.storages import RDBStorage

from search_spaces.errors import InputError, one_line
from trials.storage.durable import create_file
from trials.storage.lease import held

SQLITE = "sqlite:///"
LOCKED_SECONDS = 30.0  # as long as another process may hold the database


@contextmanager
def opening(url: str) -> Iterator[None]:
    """Hold this block around the opening of the database ``url``. Databases other than an SQLite file need nothing.

    Two processes that create one SQLite file at once leave it broken, so the second waits. A new file appears when it
    is complete. Raises InputError when the file is empty, no database, or damaged. The check reads the whole file.
    """
    path = Path(url.removeprefix(SQLITE))
    if not url.startswith(SQLITE) or path.name in ("", ":memory:") or not path.parent.is_dir():  # a lock would make it
        yield
        return
    with held(path.with_name(f"{path.name}.lease"), f"{path} in hand"):
        if path.is_file():
            _check(url, path)
        else:
            create_file(path, _create)
        yield


def _create(path: Path) -> None:
    """Create the tables of Optuna in the new file ``path``."""
    storage = RDBStorage(f"{SQLITE}{path}")
    storage.remove_session()
    storage.engine.dispose()


def _check(url: str, path: Path) -> None:
    ways = f"put a copy back, or move it away to begin anew: {path}"
    if path.stat().st_size == 0:
        raise InputError(f"storage {url}: the file is empty, so its studies are lost; {ways}")
    try:
        with closing(sqlite3.connect(path, timeout=LOCKED_SECONDS)) as connection:
            (found,) = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        raise InputError(f"storage {url}: cannot be read ({error}); end the process that holds it: {path}") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"storage {url}: damaged, or no SQLite database ({error}); {ways}") from error
    if found != "ok":
        raise InputError(f"storage {url}: damaged ({one_line(found, 150)}); {ways}")
