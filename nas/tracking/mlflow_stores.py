"""MLflow stores: which refusals are permanent, and how to open a SQLite store safely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException
from requests import HTTPError

from trials.storage.lease import held

PERMANENT_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
PERMANENT_STATUSES = (400, 413, 422)


def is_permanent(error: MlflowException | HTTPError) -> bool:
    """Whether the store would refuse the same request again."""
    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code in PERMANENT_STATUSES
    return str(error.error_code) in PERMANENT_CODES


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold the lease of the SQLite store at ``uri``; other stores need none.

    Two processes that create the same SQLite store at once leave it broken. With the lease, the second one waits.
    """
    path = uri.split(":///", 1)[1] if uri.startswith("sqlite:///") else ""
    if not path or path == ":memory:":
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with held(Path(f"{path}.lease"), f"{path} in hand"):
        yield
