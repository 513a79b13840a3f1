"""What `trials` logs, passed on to a person."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trials.storage.redact import redacted


@contextmanager
def log_messages(on_message: Callable[[str], None]) -> Iterator[None]:
    """Pass on every log message of `trials` during the block, without passwords."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            on_message(redacted(record.getMessage()))

    logger, handler = logging.getLogger("trials"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
