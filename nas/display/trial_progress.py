"""The progress of the trials: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
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
    """Shows the trials of a search as they change. ``records`` are those that the study has at the start."""

    def __init__(self, console: Console, plan: Plan, records: Sequence[TrialRecord]) -> None:
        self.plan, self.records = plan, records
        self.tokens_before = self._tokens()
        super().__init__(console)

    def update(self, records: Sequence[TrialRecord], changed: TrialRecord) -> None:
        """``records`` are all trials now; ``changed`` is the one that changed."""
        self.records = records
        if not self.live:
            self.console.print(self._line(changed), highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """An estimate from the tokens trained so far; None before the first trial has ended."""
        done = self._tokens()
        spent = done - self.tokens_before
        ended = [one for one in self.records if one.state in ("COMPLETE", "PRUNED")]
        if spent <= 0 or not ended:
            return None
        each = sum(self._trained(one) for one in ended) / len(ended)
        expected = max(self.plan.trials * each, done)
        return self.elapsed / spent * (expected - done)

    def _tokens(self) -> int:
        return sum(self._trained(one) for one in self.records)

    @staticmethod
    def _trained(record: TrialRecord) -> int:
        return record.curve[-1][0] if record.curve else 0

    def _line(self, record: TrialRecord) -> str:
        left = self.seconds_left()
        rest = f", about {clock(left)} left" if left else ""
        ended = sum(one.state != "RUNNING" for one in self.records)
        so_far = f"[{clock(self.elapsed)}, {ended}/{self.plan.trials} done]"
        what = _what(record, self.plan.recipe.tokens)
        return f"{so_far} trial {record.number} {record.architecture.key}: {what}{rest}"

    def table(self) -> RenderableType:
        """The last finished trials, the running ones, and a summary."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("trial", "architecture", "tokens", "val loss", "state"):
            table.add_column(heading, justify="right" if heading in ("trial", "tokens", "val loss") else "left")
        ended = [one for one in self.records if one.state != "RUNNING"]
        running = [one for one in self.records if one.state == "RUNNING"]
        for one in [*ended[-SHOWN:], *running]:
            loss = f"{one.curve[-1][1]:.4f}" if one.curve else "-"
            style = "bold cyan" if one.state == "RUNNING" else "dim" if one.state == "PRUNED" else ""
            table.add_row(
                str(one.number), one.architecture.key, f"{self._trained(one):,}", loss, _state(one), style=style
            )
        return Group(table, self._summary(len(ended)))

    def _summary(self, ended: int) -> RenderableType:
        left = self.seconds_left()
        losses = [one.val_loss for one in self.records if one.val_loss is not None]
        best = f"best {min(losses):.4f}   " if losses else ""
        rest = "time left unknown" if left is None else f"about {clock(left)} left"
        line = Table.grid(padding=(0, 2))
        line.add_row(
            ProgressBar(total=self.plan.trials, completed=ended, width=20),
            Text(f"{ended} of {self.plan.trials} trials   {best}{clock(self.elapsed)} so far, {rest}"),
        )
        return line


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
