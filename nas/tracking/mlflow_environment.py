"""Environment variables that configure MLflow for a search. Values that the user has set are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
QUIET = {
    TIMEOUT: "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox retries; MLflow's own retries block for minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for --json
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
UPLOAD_TIMEOUT = "300"  # seconds; a server answers after it has stored the whole file, which may be gigabytes

_ours: set[str] = set()


def set_defaults() -> None:
    """Set the variables that the user has not set. Must be called before mlflow is imported."""
    for name, value in QUIET.items():
        if name not in os.environ:
            os.environ[name] = value
            _ours.add(name)


@contextmanager
def patient_uploads() -> Iterator[None]:
    """Use the longer timeout of uploads during the block, unless the user has set a timeout."""
    if TIMEOUT not in _ours:
        yield
        return
    os.environ[TIMEOUT] = UPLOAD_TIMEOUT
    try:
        yield
    finally:
        os.environ[TIMEOUT] = QUIET[TIMEOUT]
