"""The progress of the trials: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.display.console import clock
from nas.planning.plan import Plan
from nas.study.records import TrialRecord

SHOWN = 8  # finished trials in the live table; the report has all of them


class LiveTable:
    """Keeps `table` on the screen of a terminal between `start` and `stop`. Without a terminal it shows nothing."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.started = time.monotonic()
        self._display = Live(get_renderable=self.table, console=console, refresh_per_second=2) if self.live else None

    def start(self) -> None:
        """Show the table."""
        if self._display is not None:
            self._display.start()

    def stop(self) -> None:
        """Leave the table as it is."""
        if self._display is not None:
            self._display.stop()

    def table(self) -> RenderableType:
        """What is on the screen now."""
        raise NotImplementedError

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


class TrialProgress(LiveTable):
    """Shows the trials of a search as they change. ``records`` are those that the study has at the start.

    It keeps sums, not records, so that an update takes as long after thousands of trials as after the first.
    """

    def __init__(self, console: Console, plan: Plan, records: Sequence[TrialRecord]) -> None:
        self.plan = plan
        self._running: dict[str, TrialRecord] = {}  # by the architecture's key: a repeated trial has another number
        self._last: deque[TrialRecord] = deque(maxlen=SHOWN)
        self._best = math.inf
        self._ended = self._trained = self._tokens_trained = self._tokens_failed = 0
        for record in records:
            self._count(record)
        self.tokens_before = self._tokens()
        super().__init__(console)

    def update(self, record: TrialRecord) -> None:
        """``record`` is a trial that changed."""
        self._count(record)
        if not self.live:
            self.console.print(self._line(record), highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """An estimate from the tokens trained so far; None before the first trial has ended."""
        done = self._tokens()
        spent = done - self.tokens_before
        if spent <= 0 or not self._trained:
            return None
        expected = max(self.plan.trials * self._tokens_trained / self._trained, done)
        return self.elapsed / spent * (expected - done)

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
        else:
            self._tokens_failed += _tokens_of(record)
        if record.val_loss is not None:
            self._best = min(self._best, record.val_loss)

    def _tokens(self) -> int:
        return self._tokens_trained + self._tokens_failed + sum(map(_tokens_of, self._running.values()))

    def _line(self, record: TrialRecord) -> str:
        left = self.seconds_left()
        rest = f", about {clock(left)} left" if left else ""
        so_far = f"[{clock(self.elapsed)}, {self._ended}/{self.plan.trials} done]"
        what = _what(record, self.plan.recipe.tokens)
        return f"{so_far} trial {record.number} {record.architecture.key}: {what}{rest}"

    def table(self) -> RenderableType:
        """The last finished trials, the running ones, and a summary."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("trial", "architecture", "tokens", "val loss", "state"):
            table.add_column(heading, justify="right" if heading in ("trial", "tokens", "val loss") else "left")
        for one in [*self._last, *self._running.values()]:
            loss = f"{one.curve[-1][1]:.4f}" if one.curve else "-"
            style = "bold cyan" if one.state == "RUNNING" else "dim" if one.state == "PRUNED" else ""
            cells = (str(one.number), one.architecture.key, f"{_tokens_of(one):,}", loss, _state(one))
            table.add_row(*cells, style=style)
        return Group(table, self._summary())

    def _summary(self) -> RenderableType:
        left = self.seconds_left()
        best = f"best {self._best:.4f}   " if math.isfinite(self._best) else ""
        rest = "time left unknown" if left is None else f"about {clock(left)} left"
        line = Table.grid(padding=(0, 2))
        line.add_row(
            ProgressBar(total=self.plan.trials, completed=self._ended, width=20),
            Text(f"{self._ended} of {self.plan.trials} trials   {best}{clock(self.elapsed)} so far, {rest}"),
        )
        return line


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
