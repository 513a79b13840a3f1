"""What a search shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.planning.plan import Plan
from nas.study.records import TrialRecord

SHOWN = 8  # finished trials in the live table; the report has them all


class Progress:
    """Follows the records of a search and shows them on ``console`` as they change."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console, self.plan = console, plan
        self.live = console.is_terminal
        self.started = time.monotonic()
        self.records: Sequence[TrialRecord] = ()
        self.tokens_before: int | None = None
        self._display: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the live table on the screen during the block; without a terminal, do nothing."""
        if not self.live:
            yield
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=2) as self._display:
            yield
        self._display = None

    def update(self, records: Sequence[TrialRecord], number: int) -> None:
        """``records`` are all trials now; ``number`` is the one that changed."""
        self.records = records
        if self.tokens_before is None:
            self.tokens_before = self._tokens()
        if self.live:
            return
        changed = next((one for one in records if one.number == number), None)
        if changed is not None:
            self.console.print(self._line(changed), highlight=False, soft_wrap=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """An estimate from the tokens trained so far, or None while nothing is known."""
        done = self._tokens()
        spent = done - (self.tokens_before or 0)
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

    def _table(self) -> RenderableType:
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
        rest = f"about {clock(left)} left" if left else "time left: not known yet"
        line = Table.grid(padding=(0, 2))
        line.add_row(
            ProgressBar(total=self.plan.trials, completed=ended, width=30),
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


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
