"""Studies on a database server: the same as in a file, and a server that goes away is waited for."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from database_server import PASSWORD, DatabaseServer, MariaDB, Postgres, database_server
from made_up_search import MadeUp
from optuna.exceptions import StorageInternalError
from optuna.storages._rdb import storage as rdb
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from nas.report.__main__ import main as report
from nas.search import main as search
from nas.study import storage as storage_module
from nas.study.snapshot import open_study, snapshot
from nas.study.storage import open_storage, server_url
from search_spaces.errors import InputError

# Each of them is part of a trial. Optuna reads the second to fifth of all trials in one transaction.
STATEMENTS = (
    "FROM trials",
    "FROM trial_params",
    "FROM trial_values",
    "FROM trial_user_attributes",
    "FROM trial_system_attributes",
    "INSERT INTO trials",
    "INSERT INTO trial_params",
    "INSERT INTO trial_intermediate_values",
    "UPDATE trials",
)


@pytest.fixture(scope="module", params=[Postgres, MariaDB])
def server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    with database_server(request.param) as found:
        yield found


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://me@host/db", "postgresql+psycopg"),
        ("postgres://me@host/db", "postgresql+psycopg"),
        ("postgresql+psycopg2://me@host/db", "postgresql+psycopg2"),
        ("mysql://me@host/db", "mysql+pymysql"),
        ("mariadb://me@host/db", "mariadb+pymysql"),
        ("sqlite:////folder/studies.db", None),
        ("nonsense", None),
    ],
)
def test_the_driver_of_a_url(url: str, driver: str | None) -> None:
    found = server_url(url)
    assert (found.drivername if found else None) == driver


@pytest.mark.parametrize(("scheme", "extra"), [("postgresql", "postgres"), ("mysql", "mysql")])
def test_a_missing_driver_is_one_line_with_the_command(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"pip install 'llm-nas\[{extra}\]'") as error:
        open_storage(f"{scheme}://me:hidden@host/db")
    assert "hidden" not in str(error.value)


def test_wrong_password_missing_database_and_no_server_are_one_line_without_the_password(
    server: DatabaseServer,
) -> None:
    wrong = {
        server.url(password="wr0ng"): server.wrong_password,
        server.url(database="nowhere"): server.missing_database,
        server.url(port=1): "Connection refused",
    }
    for url, said in wrong.items():
        began = time.monotonic()
        with pytest.raises(InputError, match=said) as error:
            open_storage(url)
        assert "cannot be opened" in str(error.value)
        assert "wr0ng" not in str(error.value)
        assert PASSWORD not in str(error.value)
        assert time.monotonic() - began < storage_module.AWAY_SECONDS / 10  # it does not wait for one never there


def test_the_command_looks_for_the_server_before_anything_else(
    server: DatabaseServer, tiny_teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(tiny_teacher_folder), "--budget", "60%", "--tolerance", "0.2", "--corpus", "stdlib"]
    for url in (server.url(password="wr0ng"), server.url(port=1), "nonsense"):
        assert search([*flags, "--output", str(tmp_path / "out"), "--storage", url]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: storage")
        assert said.count("\n") == 1
        assert "wr0ng" not in said
        assert PASSWORD not in said
    assert not (tmp_path / "out").exists()


def test_a_search_in_a_server_is_the_same_as_in_a_file(
    server: DatabaseServer, tiny_teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for study, storage in (("made-up", server.url()), ("made-up", f"sqlite:///{tmp_path}/studies.db")):
        made = MadeUp(tiny_teacher_folder, tmp_path / str(len(found)), storage=storage, study=study)
        made.screen()
        made.trials(4, failing=[2])
        again = MadeUp(tiny_teacher_folder, tmp_path / str(len(found)), storage=storage, study=study)
        again.trials(2)
        again.conclude()
        found.append(snapshot(open_study(storage, study)))
    other = MadeUp(tiny_teacher_folder, tmp_path / "other", storage=server.url(), study="other")
    other.trials(1)
    assert [one.number for one in found[0].records] == [0, 1, 2, 3, 4, 5]
    for mine, theirs in zip(*(one.records for one in found), strict=True):
        assert (mine.architecture, mine.state, mine.curve, mine.val_loss, mine.reason) == (
            theirs.architecture,
            theirs.state,
            theirs.curve,
            theirs.val_loss,
            theirs.reason,
        )
    mine, theirs = ({one.name: one for one in each.finals} for each in found)  # in whatever order a database has them
    assert mine == theirs
    assert len(snapshot(open_study(server.url(), "other")).records) == 1
    assert report(["made-up", "--output", str(tmp_path / "0"), "--storage", server.url()]) == 0
    assert (tmp_path / "0" / "made-up" / "report" / "report.html").stat().st_size > 10_000
    assert report(["nothing", "--output", str(tmp_path / "0"), "--storage", server.url()]) == 2
    said = capsys.readouterr().err
    assert "known are made-up, other" in said
    assert PASSWORD not in said


def test_long_attributes_are_kept_whole(server: DatabaseServer) -> None:
    study = optuna.create_study(storage=open_storage(server.url(), alone=True), study_name="long")
    trial = study.ask()
    for keeper in (study, trial):
        keeper.set_user_attr("long", "é" * 300_000)
    again = optuna.load_study(storage=open_storage(server.url()), study_name="long")
    assert again.user_attrs["long"] == again.trials[0].user_attrs["long"] == "é" * 300_000


def test_a_server_that_is_killed_is_waited_for_and_nothing_is_lost(
    server: DatabaseServer, tiny_teacher_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start_when_missed(missed_before: int) -> None:
        while caplog.text.count("the server is away") == missed_before:
            time.sleep(0.05)
        server.start()

    made = MadeUp(tiny_teacher_folder, tmp_path, storage=server.url(), study="killed")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            server.kill()
            missed_before = caplog.text.count("the server is away")
            starting = threading.Thread(target=start_when_missed, args=(missed_before,), daemon=True)
            starting.start()
            made.trials(1)
            starting.join(storage_module.AWAY_SECONDS)
            made.trials(1)
    away = caplog.text.count("the server is away")
    assert away >= 3  # more, when a server that starts takes a connection and drops it
    assert caplog.text.count(f"at most {storage_module.AWAY_SECONDS:.0f} s") == away
    assert caplog.text.count("the server is back") == away
    assert PASSWORD not in caplog.text
    records = made.study.records()
    assert [one.number for one in records] == list(range(6))
    assert {one.state for one in records} == {"COMPLETE", "PRUNED"}


def test_a_connection_whose_other_end_is_gone_without_a_word_is_given_up(server: DatabaseServer) -> None:
    storage: Any = open_storage(server.url(), alone=True)
    found = storage._backend.engine.raw_connection()
    if isinstance(server, Postgres):
        with socket.socket(fileno=os.dup(found.driver_connection.fileno())) as line:
            limits = [
                line.getsockopt(socket.IPPROTO_TCP, one)
                for one in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            ]
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert limits[0] + limits[1] * limits[2] == storage_module.SILENT_SECONDS
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * storage_module.SILENT_SECONDS
    else:
        assert found.driver_connection._read_timeout == storage_module.SILENT_SECONDS
    found.close()


def test_at_whatever_statement_the_connection_is_lost_nothing_else_is(
    server: DatabaseServer, tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "FIRST_PAUSE", 0.01)
    armed: list[str] = []

    def cut(*event: Any) -> None:
        if armed and armed[0] in event[2]:
            armed.clear()
            server.cut()

    found = []
    for storage in (f"sqlite:///{tmp_path}/studies.db", server.url()):
        made = MadeUp(tiny_teacher_folder, tmp_path, storage=storage, study="cut")
        engine = made.study._study._storage._backend.engine
        for statement in STATEMENTS:
            if found:
                armed.append(statement)
                sqlalchemy.event.listen(engine, "before_cursor_execute", cut)
            made.trials(1)
            if found:
                sqlalchemy.event.remove(engine, "before_cursor_execute", cut)
                assert not armed
        found.append([replace(one, started=None, ended=None) for one in made.study.records()])
    assert found[0] == found[1]
    assert [one.number for one in found[1]] == list(range(len(STATEMENTS)))


def test_a_server_that_stays_away_ends_the_search_with_one_line(
    server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "AWAY_SECONDS", 1.0)
    storage = open_storage(server.url(), alone=True)
    server.kill()
    try:
        with pytest.raises(InputError, match=r"the server has been away for .* and the same command continues"):
            storage.get_all_studies()
    finally:
        server.start()


def test_a_call_whose_answer_was_lost_is_repeated_without_harm(
    server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=open_storage(server.url(), alone=True), study_name="answers")
    left = [1]

    @contextmanager
    def session(*arguments: Any, **named: Any) -> Iterator[Any]:
        with real_session(*arguments, **named) as found:
            yield found
        left.append(1)
        if len(left) == 1:  # the first is done, and its answer does not arrive
            raise StorageInternalError from OperationalError("commit", {}, Exception("the connection is lost"))

    real_session = rdb._create_scoped_session
    monkeypatch.setattr(rdb, "_create_scoped_session", session)
    left.clear()
    study.enqueue_trial({"x": 1})
    left.clear()
    trial = study.ask()
    left.clear()
    second = study.ask()
    calls: list[Callable[[], Any]] = [
        lambda: trial.set_user_attr("a", 1),
        lambda: trial.report(1.0, 1),
        lambda: study.set_user_attr("b", 2),
        lambda: study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0]),
        lambda: study._storage.create_new_trial(study._study_id),
    ]
    for call in calls:
        left.clear()
        call()
        assert len(left) > 1
    found = optuna.load_study(storage=open_storage(server.url()), study_name="answers")
    assert [one.number for one in found.trials] == [0, second.number, 2]
    assert [one.state for one in found.trials] == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]
    assert found.trials[0].value == 2.0
    assert found.trials[0].user_attrs == {"a": 1}
    assert found.trials[0].intermediate_values == {1: 1.0}
    assert found.user_attrs == {"b": 2}


def test_a_waiting_trial_whose_start_was_not_answered_has_started(server: DatabaseServer) -> None:
    storage = open_storage(server.url(), alone=True)
    study = optuna.create_study(storage=storage, study_name="starts")
    study.enqueue_trial({"x": 1})
    (waiting,) = study.trials
    assert storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    assert not storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)  # another process has it
