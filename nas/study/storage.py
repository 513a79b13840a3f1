"""The storage of studies: an SQLite file, or a database server that may be away for a while."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from nas.study.database import storage_of
from nas.study.only_writer import OnlyWriter
from search_spaces.errors import InputError
from trials.storage.disk import is_full
from trials.storage.redact import redacted_message

AWAY_SECONDS = 600.0  # as long as a search waits for a server that was there
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts, doubling
CONNECT_SECONDS = 10  # for a server that does not answer
SILENT_SECONDS = 120  # for a machine that went away in the middle of a call; TCP alone waits for hours

# By the dialect of a URL: what its driver is told about a server that says nothing. `tcp_user_timeout` is in ms.
SILENCE = {
    "postgresql": {
        "keepalives_idle": SILENT_SECONDS // 2,
        "keepalives_interval": SILENT_SECONDS // 8,
        "keepalives_count": 4,
        "tcp_user_timeout": 1000 * SILENT_SECONDS,
    },
    "mysql": {"read_timeout": SILENT_SECONDS, "write_timeout": SILENT_SECONDS},
}
SILENCE["mariadb"] = SILENCE["mysql"]

# By the dialect of a URL: the driver that is taken when the URL names none, and the extra of this package that has it.
DRIVERS = {"postgresql": ("psycopg", "postgres"), "mysql": ("pymysql", "mysql"), "mariadb": ("pymysql", "mysql")}

# What SQLAlchemy raises when the connection is lost; the last when Optuna asks another way in the same transaction.
AWAY = (OperationalError, InterfaceError, PendingRollbackError)

Result = TypeVar("Result")

log = logging.getLogger(__name__)
logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)  # it prints statements that are repeated


def open_storage(url: str, *, reading: bool = False, alone: bool = False) -> BaseStorage:
    """The storage at ``url``, an Optuna URL. Missing tables are made, unless it is only for ``reading``.

    ``alone`` promises that nobody else writes trials; see `OnlyWriter`. Once a server has answered, calls wait up to
    `AWAY_SECONDS` for it when it goes away. Raises InputError when the driver of a server is missing, and when the
    storage cannot be opened.
    """
    with explained(url):
        server = server_url(url)
        if server is None:
            return storage_of(url, reading=reading, alone=alone)
        return OnlyWriter(ServerStorage(server)) if alone else get_storage(ServerStorage(server))


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what Optuna and SQLAlchemy raise in this block into an InputError: the storage ``url`` cannot be opened."""
    try:
        yield
    except InputError:
        raise
    except RuntimeError as error:
        if "version" not in str(error):
            raise
        raise InputError(
            f"storage {shown_url(url)!r}: another version of Optuna made it; run `optuna storage upgrade --storage "
            "URL`, or give another --output or --storage"
        ) from error
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError, OSError) as error:
        if is_full(error):
            raise
        raise InputError(
            f"storage {shown_url(url)!r}: cannot be opened ({_reason(error)}); "
            "give an Optuna URL such as sqlite:////folder/studies.db or postgresql://user@host/database"
        ) from error


def shown_url(url: str) -> str:
    """``url`` without its password."""
    try:
        return make_url(url).render_as_string()
    except ArgumentError:
        return url


def server_url(url: str) -> URL | None:
    """The ``url`` of a database server with the driver that it needs; None for other storages.

    Raises InputError when that driver is not installed.
    """
    if url.startswith("postgres://"):  # as many providers print it
        url = url.replace("postgres://", "postgresql://", 1)
    try:
        found = make_url(url)
    except ArgumentError:
        return None
    if found.get_backend_name() not in DRIVERS:
        return None
    driver, extra = DRIVERS[found.get_backend_name()]
    if "+" not in found.drivername:
        if importlib.util.find_spec(driver) is None:
            raise InputError(
                f"storage {found.render_as_string()}: the package {driver} is missing; pip install 'llm-nas[{extra}]'"
            )
        found = found.set(drivername=f"{found.drivername}+{driver}")
    return found


class ServerStorage(RDBStorage):  # type: ignore[misc]
    """Optuna's storage on a server. Its calls wait for a server that has gone away, and then go on.

    A call whose answer was lost is repeated, and its effect may be there already. So a repeated call that finds its
    trial in the state that it sets has succeeded, and one that finds a new trial has made it: only one process adds
    trials to a study.
    """

    def __init__(self, url: URL) -> None:
        self.shown, self.patient = url.set(drivername=url.get_backend_name()).render_as_string(), False
        limits = {"connect_timeout": CONNECT_SECONDS, **SILENCE[url.get_backend_name()]}
        options = {"pool_pre_ping": True, "connect_args": limits}
        super().__init__(url.render_as_string(hide_password=False), options)
        if url.get_backend_name() in ("mysql", "mariadb"):
            self._widen()
        self.patient = True
        self._newest: int | None = None  # number of the newest trial before the one that is being made

    def _widen(self) -> None:
        """Let attributes be longer than 64 KB. Optuna's columns are TEXT, which holds no more in MySQL."""
        narrow = text(
            "select table_name from information_schema.columns where table_schema = database() "
            "and column_name = 'value_json' and data_type = 'text'"
        )
        with self.engine.begin() as connection:
            for (table,) in connection.execute(narrow).all():
                connection.execute(text(f"alter table {table} modify value_json longtext"))

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """As Optuna's, which has five tries of its own; see the class."""
        self._newest = None
        return _patiently(self, lambda: RDBStorage._create_new_trial(self, study_id, template_trial))

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> TrialModel:
        own = session.query(TrialModel).filter(TrialModel.study_id == study_id)
        newest: Any = own.order_by(TrialModel.number.desc()).first()
        if self._newest is None:
            self._newest = newest.number if newest else -1
        elif newest and newest.number > self._newest:
            made: TrialModel = newest
            return made
        return RDBStorage._get_prepared_new_trial(self, study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """As Optuna's; see the class."""
        lost = False

        def once() -> bool:
            nonlocal lost
            again, lost = lost, True
            try:
                set_now: bool = RDBStorage.set_trial_state_values(self, trial_id, state, values)
                lost = False
            except UpdateFinishedTrialError:
                if again and self.get_trial(trial_id).state is state:
                    return True
                raise
            return set_now or (again and self.get_trial(trial_id).state is state)

        return _patiently(self, once)


def _patiently(storage: ServerStorage, call: Callable[[], Result]) -> Result:
    """The result of ``call``, which is repeated while the server of ``storage`` is away."""
    began, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            found = call()
        except (StorageInternalError, *AWAY) as error:
            if not storage.patient or not _is_away(error):
                raise
            waited = time.monotonic() - began
            if waited + pause > AWAY_SECONDS:
                raise _gone(storage, waited, error) from error
            if pause == FIRST_PAUSE:
                log.warning(
                    "storage %s: the server is away (%s); waiting for it, at most %d s",
                    storage.shown,
                    _reason(error),
                    AWAY_SECONDS,
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if pause > FIRST_PAUSE:
                log.warning("storage %s: the server is back after %.0f s", storage.shown, time.monotonic() - began)
            return found


def _gone(storage: ServerStorage, waited: float, error: Exception) -> InputError:
    return InputError(
        f"storage {storage.shown}: the server has been away for {waited:.0f} s ({_reason(error)}); finished trials "
        "are kept there, and the same command continues"
    )


def _is_away(error: Exception) -> bool:
    """Whether ``error`` is of the connection or of the server, not of what was asked."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, AWAY)


def _reason(error: Exception) -> str:
    """What the server or its driver says, without the statement."""
    cause = (error.__cause__ if isinstance(error, StorageInternalError) else None) or error
    return redacted_message(getattr(cause, "orig", None) or cause, 200)


def _waiting(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @wraps(method)
    def patient(self: ServerStorage, *arguments: Any, **named: Any) -> Any:
        return _patiently(self, lambda: method(self, *arguments, **named))

    return patient


# Every call that reaches the server: those of Optuna's interface, and those of the cache that Optuna puts before it.
CACHED = {"_get_trials", "_set_trial_param", "get_trial_id_from_study_id_trial_number"}
for _name in sorted((BaseStorage.__abstractmethods__ | CACHED) - {"create_new_trial", "set_trial_state_values"}):
    setattr(ServerStorage, _name, _waiting(_name))
