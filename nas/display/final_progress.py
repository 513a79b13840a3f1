"""The progress of the final stage: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.display.console import clock
from nas.display.trial_progress import LiveTable
from nas.planning.plan import Plan
from nas.study.records import FinalRecord

STATES = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "complete", "FAIL": "failed"}


class FinalProgress(LiveTable):
    """Shows the finals of a search as they change. ``finals`` are all of them at the start."""

    def __init__(self, console: Console, plan: Plan, finals: Sequence[FinalRecord]) -> None:
        self.plan, self.finals = plan, finals
        self.tokens_before = self._tokens()
        super().__init__(console)

    def update(self, finals: Sequence[FinalRecord], changed: FinalRecord) -> None:
        """``finals`` are all of them now; ``changed`` is the one that changed."""
        self.finals = finals
        if not self.live:
            self.console.print(self._line(changed), highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """An estimate from the tokens trained so far; None before the first rung."""
        spent = self._tokens() - self.tokens_before
        left = sum(one.tokens - _trained(one) for one in self.finals if one.state in ("WAITING", "RUNNING"))
        return self.elapsed / spent * left if spent > 0 else None

    def _tokens(self) -> int:
        return sum(_trained(one) for one in self.finals)

    def _line(self, record: FinalRecord) -> str:
        left = self.seconds_left()
        rest = f", about {clock(left)} left" if left else ""
        so_far = f"[{clock(self.elapsed)}, {self._ended()}/{len(self.finals)} done]"
        return f"{so_far} final {record.architecture.key} ({', '.join(record.roles)}): {_what(record)}{rest}"

    def _ended(self) -> int:
        return sum(one.state in ("COMPLETE", "FAIL") for one in self.finals)

    def table(self) -> RenderableType:
        """All finals, and a summary."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("final", "role", "tokens", "val loss", "state"):
            table.add_column(heading, justify="right" if heading in ("tokens", "val loss") else "left")
        for one in self.finals:
            loss = f"{one.curve[-1][1]:.4f}" if one.curve else "-"
            style = "bold cyan" if one.state == "RUNNING" else "dim" if one.state == "WAITING" else ""
            cells = (one.architecture.key, ", ".join(one.roles), f"{_trained(one):,}", loss, STATES[one.state])
            table.add_row(*map(Text, cells), style=style)
        left = self.seconds_left()
        rest = "time left unknown" if left is None else f"about {clock(left)} left"
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, len(self.finals)), completed=self._ended(), width=20)
        line.add_row(bar, Text(f"{self._ended()} of {len(self.finals)} finals   {clock(self.elapsed)} so far, {rest}"))
        return Group(table, line)


def _trained(record: FinalRecord) -> int:
    return record.curve[-1][0] if record.curve else 0


def _what(record: FinalRecord) -> str:
    if record.state == "FAIL":
        return f"failed: {record.reason}"
    if not record.curve:
        return f"started, from the beginning ({record.parameters:,} parameters)"
    tokens, loss = record.curve[-1]
    ending = ", complete" if record.state == "COMPLETE" else ""
    return f"val loss {loss:.4f} after {tokens:,} of {record.tokens:,} tokens{ending}"
