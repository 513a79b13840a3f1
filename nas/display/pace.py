"""How long students take, as seen so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nas.planning.forecast import Work


@dataclass
class Pace:
    """Measures two things: the seconds until a new student is made and evaluated, and the seconds for a token.

    Trials and finals share it. A student that goes on from a checkpoint or from its trial is not made anew.
    """

    now: Callable[[], float] = time.monotonic
    _last: dict[str, tuple[float, int | None]] = field(default_factory=dict)  # the last news of each running student
    _made: int = 0
    _making: float = 0.0
    _tokens: int = 0
    _training: float = 0.0

    def note(self, student: str, tokens: int | None, ended: bool = False) -> None:
        """``student`` has trained on so many ``tokens``, None before it is made. Nothing is counted twice."""
        now, before = self.now(), self._last.get(student)
        if before is not None and tokens is not None and tokens != before[1]:
            self._count(now - before[0], before[1], tokens)
        if before is None or tokens != before[1]:
            self._last[student] = now, tokens
        if ended:
            self._last.pop(student, None)

    def _count(self, seconds: float, before: int | None, tokens: int) -> None:
        if before is None:
            self._made, self._making = self._made + 1, self._making + seconds
        elif tokens > before:
            self._tokens, self._training = self._tokens + tokens - before, self._training + seconds

    def seconds(self, work: Work, at_a_time: int) -> float | None:
        """Seconds for ``work``, by ``at_a_time`` students at a time; None before anything like it was seen."""
        if not (self._tokens or (self._made and not work.tokens)):
            return None
        making = self._making / max(1, self._made)
        training = self._training / max(1, self._tokens)
        return (work.students * making + work.tokens * training) / at_a_time
