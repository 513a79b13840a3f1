"""The clock of a search: one for all its stages."""

from __future__ import annotations

import time

from nas.display.console import clock


class Clock:
    """Counts from its making. As text it is the time so far."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.started

    def __str__(self) -> str:
        return clock(self.seconds)


def left(seconds: float | None) -> str:
    """The time that is left, in words."""
    return "time left unknown" if seconds is None else f"about {clock(seconds)} left"
