"""The progress of the trials: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from rich.console import Console

from nas.display.clock import Clock, left
from nas.display.live_table import LiveTable, Shown, summary
from nas.display.pace import Pace
from nas.planning.forecast import Work, final_work, trial_work
from nas.planning.plan import Plan
from nas.study.records import TrialRecord

SHOWN = 8  # finished trials in the live table; the report has all of them


class TrialProgress(LiveTable):
    """Shows the trials of a search as they change. ``records`` are those that the study has at the start.

    It keeps sums, not records, so that an update takes as long after thousands of trials as after the first.
    """

    headings = ("trial", "architecture", "tokens", "val loss", "state")

    def __init__(self, console: Console, clock: Clock, pace: Pace, plan: Plan, records: Sequence[TrialRecord]) -> None:
        self.clock, self.pace, self.plan = clock, pace, plan
        self._expected, self._later = trial_work(plan), final_work(plan)
        self._running: dict[str, TrialRecord] = {}  # by the architecture's key: a repeated trial has another number
        self._last: deque[TrialRecord] = deque(maxlen=SHOWN)
        self._best, self._best_key = math.inf, ""
        self._ended = self._trained = self._tokens_trained = 0
        for record in records:
            self._count(record)
        super().__init__(console)

    def update(self, record: TrialRecord) -> None:
        """``record`` is a trial that changed."""
        ended = record.state != "RUNNING"
        self.pace.note(record.architecture.key, record.curve[-1][0] if record.curve else None, ended)
        self._count(record)
        if not self.live:
            self.console.print(self._line(record), highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """An estimate for the rest of the search, the final stage included; None before the first trial has ended."""
        if not self._trained:
            return None
        made = self._ended + sum(bool(one.curve) for one in self._running.values())
        students = max(0, self._expected.students - made)
        trained = self._tokens_trained + sum(map(_tokens_of, self._running.values()))
        started = self._ended + len(self._running)
        first = self.plan.recipe.rungs[0] if self.plan.recipe.rungs else 0
        tokens = max(self._expected.tokens - trained, first * (self.plan.trials - started), 0)
        return self.pace.seconds(Work(students, tokens) + self._later, self.plan.resources.workers)

    def _count(self, record: TrialRecord) -> None:
        self._running.pop(record.architecture.key, None)
        if record.state == "RUNNING":
            self._running[record.architecture.key] = record
            return
        self._ended += 1
        self._last.append(record)
        if record.state in ("COMPLETE", "PRUNED"):
            self._trained += 1
            self._tokens_trained += _tokens_of(record)
        if record.val_loss is not None and record.val_loss < self._best:
            self._best, self._best_key = record.val_loss, record.architecture.key

    def _line(self, record: TrialRecord) -> str:
        seconds = self.seconds_left()
        best = (
            f", best so far {self._best:.4f} {self._best_key}" if record.state != "RUNNING" and self._best_key else ""
        )
        rest = f", {left(seconds)}" if seconds else ""
        so_far = f"[{self.clock}, {self._ended}/{self.plan.trials} done]"
        what = _what(record, self.plan.recipe.tokens)
        return f"{so_far} trial {record.number} {record.architecture.key}: {what}{best}{rest}"

    def shown(self) -> Shown:
        """The last finished trials, the running ones, and a summary."""
        rows = []
        for one in [*self._last, *self._running.values()]:
            loss = f"{one.curve[-1][1]:.4f}" if one.curve else "-"
            style = "bold cyan" if one.state == "RUNNING" else "dim" if one.state == "PRUNED" else ""
            rows.append((style, (str(one.number), one.architecture.key, f"{_tokens_of(one):,}", loss, _state(one))))
        text = f"{self._ended} of {self.plan.trials} trials, {self.clock} so far, {left(self.seconds_left())}"
        best = f"{self._best:.4f} {self._best_key}" if self._best_key else ""
        return rows, summary(self._ended, self.plan.trials, text, best)


def _tokens_of(record: TrialRecord) -> int:
    return record.curve[-1][0] if record.curve else 0


def _what(record: TrialRecord, total: int) -> str:
    if record.state == "FAIL":
        return f"failed: {record.reason}"
    if not record.curve:
        return f"started ({record.parameters:,} parameters, {record.origin})"
    tokens, loss = record.curve[-1]
    at = "before retraining" if tokens == 0 else f"after {tokens:,} of {total:,} tokens"
    ending = "" if record.state == "RUNNING" else f", {_state(record)}"
    return f"val loss {loss:.4f} {at}{ending}"


def _state(record: TrialRecord) -> str:
    words = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}
    return words[record.state]
