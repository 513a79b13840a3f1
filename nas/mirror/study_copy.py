"""A study as one SQLite file of its own: copied from the database of a search, and put back into one."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna

from nas.mirror.manifest import Standing
from nas.study.database import LOCKED_SECONDS, SQLITE, opening
from nas.study.sampler import INTERRUPTED
from nas.study.snapshot import FINAL
from nas.study.storage import open_storage

UID = "uid"  # the attribute with the study's unique name, see `SearchStudy.unique_id`


def found_study(url: str, name: str) -> optuna.Study | None:
    """The study ``name`` in the database ``url``, or None. A missing SQLite file is not created."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith(SQLITE) and not file_of(url).is_file():
        return None
    with opening(url):
        storage = open_storage(url)
    known = name in optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage) if known else None


def standing_of(study: optuna.Study) -> Standing:
    """How far ``study`` is. Trials that were interrupted and queued again do not count."""
    trials = study.get_trials(deepcopy=False)
    ended = sum(one.state.is_finished() and one.user_attrs.get("reason") != INTERRUPTED for one in trials)
    finals = [value for key, value in study.user_attrs.items() if key.startswith(FINAL)]
    return Standing(ended, sum(one["ended"] is not None for one in finals))


def study_id(study: optuna.Study) -> str:
    """The unique name of ``study``; empty when it has none yet."""
    return str(study.user_attrs.get(UID, ""))


def file_of(url: str) -> Path:
    """The file of an SQLite ``url``."""
    return Path(url.removeprefix(SQLITE))


def copy_out(database: Path, name: str, target: Path) -> None:
    """Copy the study ``name`` alone from the SQLite file ``database`` to the new file ``target``.

    The copy is consistent, also while somebody writes. Raises sqlite3.Error.
    """
    target.unlink(missing_ok=True)
    source = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCKED_SECONDS)
    with closing(source), closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
        keep_only(copy, name)


def keep_only(copy: sqlite3.Connection, name: str) -> None:
    """Remove all studies but ``name`` from the Optuna database ``copy``."""
    (number,) = copy.execute("select study_id from studies where study_name = ?", (name,)).fetchone()
    tables = [one for (one,) in copy.execute("select name from sqlite_master where type = 'table'").fetchall()]
    columns = {table: {row[1] for row in copy.execute(f"pragma table_info({table})")} for table in tables}
    with copy:
        for table in tables:
            if "trial_id" in columns[table] and "study_id" not in columns[table]:
                own = "select trial_id from trials where study_id = ?"
                copy.execute(f"delete from {table} where trial_id not in ({own})", (number,))  # nosec B608  # its tables
        for table in tables:
            if "study_id" in columns[table]:
                copy.execute(f"delete from {table} where study_id != ?", (number,))  # nosec B608  # its own tables
    copy.execute("vacuum")


def put_back(copy: Path, name: str, url: str) -> None:
    """Put the study ``name`` from the SQLite file ``copy`` into the database ``url``, which has no such study.

    A missing SQLite file is made by a rename, so it is there whole or not at all. Another database gets the study
    trial by trial, which takes about 20 ms for each; call `discard` when that was cut off.
    """
    file = file_of(url)
    if url.startswith(SQLITE) and not file.exists():
        os.replace(copy, file)
        return
    with opening(url):
        optuna.copy_study(
            from_study_name=name, from_storage=f"{SQLITE}{copy}", to_storage=open_storage(url), to_study_name=name
        )


def discard(name: str, url: str) -> None:
    """Delete what `put_back` has left of the study ``name``."""
    if (study := found_study(url, name)) is not None:
        optuna.delete_study(study_name=name, storage=study._storage)
