"""Progress of long steps, as log messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

SECONDS = 10.0  # between two messages
Item = TypeVar("Item")

log = logging.getLogger(__name__)


class Counter:
    """Counts up to ``total``, and logs "``what``: 3 of 24" every `SECONDS`, but not before and not at the end."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._told = time.monotonic()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        if now - self._told >= SECONDS and self.done < self.total:
            log.info("%s: %s of %s", self.what, f"{self.done:,}", f"{self.total:,}")
            self._told = now


def counted(items: Iterable[Item], total: int, what: str, each: int = 1) -> Iterator[Item]:
    """Pass on ``items`` and count them in a `Counter`, each as so many."""
    counter = Counter(what, total)
    for item in items:
        yield item
        counter.add(each)
