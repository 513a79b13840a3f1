"""MLflow stores: which refusals are permanent, and how to open a SQLite store safely."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import HTTPError

from nas.study.database import SQLITE
from trials.storage.disk import is_full
from trials.storage.durable import create_file
from trials.storage.lease import held

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors that it raises too

PERMANENT_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
PERMANENT_STATUSES = (400, 413, 422)


def is_permanent(error: MlflowException | HTTPError) -> bool:
    """Whether the store would refuse the same request again."""
    if is_full(error):
        return False
    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code in PERMANENT_STATUSES
    return str(error.error_code) in PERMANENT_CODES


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold the lease of the SQLite store at ``uri``, which is created if it is missing; other stores need none.

    Two processes that create the same SQLite store at once leave it broken. With the lease, the second one waits. A
    store that is half made would stay broken for ever. So a new one appears when it is complete.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.name in ("", ":memory:"):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.with_name(f"{path.name}.lease"), f"{path} in hand"):
        if not path.exists():
            create_file(path, _create)
        yield


def _create(path: Path) -> None:
    """Create the tables of MLflow in the new file ``path``."""
    uri = f"{SQLITE}{path}"
    MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
