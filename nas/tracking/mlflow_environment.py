"""MLflow is set by environment variables: what a search needs of them, wherever the user has said nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
QUIET = {
    TIMEOUT: "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox tries again; MLflow's own retries stall for minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to --json
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
UPLOAD_TIMEOUT = "300"  # a server answers once it has stored the whole file, which may be gigabytes

_ours: set[str] = set()


def set_defaults() -> None:
    """Set what the user has not. To be called before mlflow is imported."""
    for name, value in QUIET.items():
        if name not in os.environ:
            os.environ[name] = value
            _ours.add(name)


@contextmanager
def patient_uploads() -> Iterator[None]:
    """Allow a request as long as an upload may take, unless the user has set a timeout."""
    if TIMEOUT not in _ours:
        yield
        return
    os.environ[TIMEOUT] = UPLOAD_TIMEOUT
    try:
        yield
    finally:
        os.environ[TIMEOUT] = QUIET[TIMEOUT]
