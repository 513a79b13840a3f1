"""A study refuses settings that make losses incomparable, and a database that is not whole, in one line each."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_disk import needs_disks, on_disk

from nas.study import database
from nas.study.database import faults_named
from nas.study.study import SearchStudy
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace
from trials.teacher.source import MINI, read_shape

SHAPE = read_shape(MINI)
SPACE = SearchSpace(SHAPE, depth=(4, 8), hidden=(128, 256), heads=(4, 8), kv_heads=(), mlp=(512, 1024))
FEASIBLE = tuple(SPACE)


def study(folder: Path, **identity: Any) -> SearchStudy:
    url = f"sqlite:///{folder / 'studies.db'}"
    return SearchStudy(url, "s", SPACE, FEASIBLE, sampler="tpe", seed=0, identity=identity)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"tokens": 1, "text_share": 0.5}, {"tokens": 1}, "text_share=0.5, not None"),
        ({"tokens": 1}, {"tokens": 1, "text_share": 0.5}, "text_share=None, not 0.5"),
        ({"tokens": 1}, {"tokens": 2}, "tokens=1, not 2"),
    ],
)
def test_a_setting_that_is_left_out_is_a_difference_too(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], named: str
) -> None:
    study(tmp_path, **first)
    study(tmp_path, **first)
    with pytest.raises(InputError, match=named):
        study(tmp_path, **second)


def test_an_empty_file_is_no_new_study(tmp_path: Path) -> None:
    (tmp_path / "studies.db").touch()
    with pytest.raises(InputError, match=r"the file is empty.*studies\.db"):
        study(tmp_path)
    assert (tmp_path / "studies.db").stat().st_size == 0


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(InputError, match=r"damaged, or no SQLite database .*studies\.db"):
        study(tmp_path)


def test_one_damaged_page_is_named(tmp_path: Path) -> None:
    made = study(tmp_path)
    for _ in FEASIBLE:
        candidate = made.ask()
        assert candidate is not None
        made.complete(candidate.number, 1.0, {})
    file = tmp_path / "studies.db"
    pages = file.stat().st_size // 4096
    with file.open("r+b") as database:
        for page in range(2, pages):
            database.seek(page * 4096)
            database.write(os.urandom(64))
    with pytest.raises(InputError, match=r"damaged.*put a copy back"):
        study(tmp_path)


def test_a_database_of_another_optuna_says_how_to_upgrade_it(tmp_path: Path) -> None:
    study(tmp_path)
    with closing(sqlite3.connect(tmp_path / "studies.db")) as connection:
        connection.execute("update alembic_version set version_num='v2.6.0.a'")
        connection.commit()
    with pytest.raises(InputError, match="optuna storage upgrade"):
        study(tmp_path)


def test_studies_that_are_opened_at_once_in_a_new_file_are_all_made(tmp_path: Path) -> None:
    def make(number: int) -> SearchStudy:
        url = f"sqlite:///{tmp_path / 'studies.db'}"
        return SearchStudy(url, f"s{number}", SPACE, FEASIBLE, sampler="tpe", seed=0, identity={})

    with ThreadPoolExecutor(4) as threads:
        assert [one.name for one in threads.map(make, range(4))] == ["s0", "s1", "s2", "s3"]


def finished(folder: Path, count: int = 4) -> SearchStudy:
    """A study with so many complete trials, and more in a long attribute, so that its file has many pages."""
    made = study(folder)
    made.remember("long", ["x" * 1000] * 40)
    for number in range(count):
        candidate = made.ask()
        assert candidate is not None
        made.complete(candidate.number, 1.0 + number, {})
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with a study in it."""
    folder = tmp_path_factory.mktemp("whole")
    finished(folder)
    return (folder / "studies.db").read_bytes()


def opened_or_told(folder: Path) -> str:
    """What the study says when it is opened; empty if it has all its trials."""
    try:
        return "" if study(folder).finished() == 4 else "trials are missing"
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_named_and_left_as_it_is(tmp_path: Path, whole: bytes, share: float) -> None:
    cut = whole[: int(len(whole) * share)]
    (tmp_path / "studies.db").write_bytes(cut)
    told = opened_or_told(tmp_path)
    assert "damaged" in told
    assert f"put a copy back, or move it away to begin anew: {tmp_path}/studies.db" in told
    assert (tmp_path / "studies.db").read_bytes() == cut


def test_a_file_that_was_torn_anywhere_is_named_or_of_no_consequence(tmp_path: Path, whole: bytes) -> None:
    told = Counter[bool]()
    for place in range(0, len(whole), 4096):
        folder = tmp_path / f"{place}"
        folder.mkdir()
        (folder / "studies.db").write_bytes(whole[:place] + bytes(4096) + whole[place + 4096 :])
        found = opened_or_told(folder)
        assert not found or "damaged" in found
        told[bool(found)] += 1
    assert told[True] > told[False]


LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin exclusive")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def locked(folder: Path, seconds: float) -> Iterator[int]:
    """Another process has the database locked for so long. Gives its number."""
    command = [sys.executable, "-c", LOCK, str(folder / "studies.db"), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_locked_file_is_waited_for_and_the_log_says_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "SOON_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    finished(tmp_path)
    with locked(tmp_path, 2.0) as number:
        assert study(tmp_path).finished() == 4
    assert f"studies.db is locked by process {number} ({sys.executable} -c" in caplog.text


def test_a_file_that_stays_locked_is_one_line_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SOON_SECONDS", 0.1)
    monkeypatch.setattr(database, "LOCKED_SECONDS", 1.0)
    finished(tmp_path)
    with locked(tmp_path, 600.0) as number, pytest.raises(InputError, match=rf"locked for 1 s by process {number} "):
        study(tmp_path)


def test_a_running_search_waits_for_a_lock(tmp_path: Path) -> None:
    made = finished(tmp_path)
    candidate = made.ask()
    assert candidate is not None
    with locked(tmp_path, 6.0):  # SQLite itself would give up after 5 s
        made.complete(candidate.number, 0.5, {})
    assert study(tmp_path).finished() == 5


@pytest.mark.fault_slow
def test_a_running_search_waits_a_minute_for_a_lock(tmp_path: Path) -> None:
    made = finished(tmp_path)
    with locked(tmp_path, 60.0):
        made.remember("key", "value")
    assert study(tmp_path).recall("key") == "value"


def test_a_running_search_names_who_holds_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0.5)
    made = finished(tmp_path)
    told = pytest.raises(InputError, match=r"locked for 0 s by process (\d+) .*what is finished is kept")
    with locked(tmp_path, 600.0) as number, told as error, faults_named(f"sqlite:///{tmp_path / 'studies.db'}"):
        made.remember("key", "value")
    assert f"by process {number} " in str(error.value)


def test_a_file_that_was_removed_is_put_back(tmp_path: Path) -> None:
    made = finished(tmp_path)
    before = [one.to_dict() for one in made.records()]
    (tmp_path / "studies.db").unlink()
    for attempt in (made.ask, made.requeue):  # the second is how a search ends
        with pytest.raises(InputError, match=r"was removed while the search ran; it is there again; nothing that is"):
            attempt()
    assert not (tmp_path / "studies.db.kept").exists()
    assert [one.to_dict() for one in study(tmp_path).records()] == before


def test_a_removed_file_is_put_back_from_the_one_that_the_search_had_open(tmp_path: Path) -> None:
    """A new connection finds no file and makes an empty one, which holds nothing to put back."""
    made = finished(tmp_path)
    (tmp_path / "studies.db").unlink()
    made._study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    (tmp_path / "studies.db").touch()
    with pytest.raises(InputError, match="it is there again"):
        made.ask()
    assert study(tmp_path).finished() == 4


def test_a_file_that_was_replaced_is_kept_beside_the_other(tmp_path: Path, whole: bytes) -> None:
    made = finished(tmp_path, 6)
    os.replace(tmp_path / "studies.db", tmp_path / "away")
    (tmp_path / "studies.db").write_bytes(whole)
    with pytest.raises(InputError, match=r"replaced by another file .*choose one of the two"):
        made.remember("key", "value")
    assert (tmp_path / "studies.db").read_bytes() == whole
    os.replace(tmp_path / "studies.db.kept", tmp_path / "studies.db")
    assert study(tmp_path).finished() == 6


def test_a_folder_that_was_removed_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    made = finished(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="was removed while the search ran, and could not be put back"):
        made.ask()


MAKE = "import sys, pathlib, test_database; test_database.finished(pathlib.Path(sys.argv[1]))"
READ = """
import sys
from pathlib import Path
from test_database import opened_or_told
from nas.study.snapshot import open_study

print(opened_or_told(Path(sys.argv[1])))
print(len(open_study(f"sqlite:///{sys.argv[1]}/studies.db", "s").trials))
"""


def test_a_file_on_a_read_only_disk_is_named_and_can_be_read(tmp_path: Path) -> None:
    needs_disks()
    script = '"$1" -c "$2" "$0" && mount -o remount,ro "$0" && "$1" -c "$3" "$0"'
    done = on_disk(tmp_path, "8m", "sh", "-c", script, str(tmp_path), sys.executable, MAKE, READ)
    assert done.returncode == 0, done.stderr
    told, count = done.stdout.splitlines()
    assert f"{tmp_path}/studies.db is read-only; make it writable, or give another --output" in told
    assert count == "4"
