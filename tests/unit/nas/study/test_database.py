"""A study refuses settings that make losses incomparable, and a database that is not whole, in one line each."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

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
