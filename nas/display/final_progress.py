"""The progress of the final stage: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from nas.choosing.selection import competes, final_ranking
from nas.display.clock import Clock, left
from nas.display.live_table import LiveTable, Shown, summary
from nas.display.pace import Pace
from nas.planning.forecast import Work
from nas.planning.plan import Plan
from nas.study.records import FinalRecord

STATES = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "complete", "FAIL": "failed"}


class FinalProgress(LiveTable):
    """Shows the finals of a search as they change. ``finals`` are all of them at the start."""

    headings = ("final", "role", "tokens", "val loss", "state")

    def __init__(self, console: Console, clock: Clock, pace: Pace, plan: Plan, finals: Sequence[FinalRecord]) -> None:
        self.clock, self.pace, self.plan, self.finals = clock, pace, plan, finals
        super().__init__(console)

    def update(self, finals: Sequence[FinalRecord], changed: FinalRecord) -> None:
        """``finals`` are all of them now; ``changed`` is the one that changed."""
        self.finals = finals
        tokens = changed.curve[-1][0] if changed.curve else None
        self.pace.note(f"final {changed.name}", tokens, changed.state in ("COMPLETE", "FAIL"))
        if not self.live:
            self.console.print(self._line(changed), highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """An estimate from what was trained so far, in the trials too; None before anything was."""
        going = [one for one in self.finals if one.state in ("WAITING", "RUNNING")]
        work = Work(sum(not one.curve for one in going), sum(one.tokens - _trained(one) for one in going))
        return self.pace.seconds(work, self.plan.resources.workers)

    def _line(self, record: FinalRecord) -> str:
        seconds, best = self.seconds_left(), self._best() if record.state == "COMPLETE" else None
        lead = f", best so far {best.val_loss:.4f} {best.architecture.key}" if best else ""
        rest = f", {left(seconds)}" if seconds else ""
        so_far = f"[{self.clock}, {self._ended()}/{len(self.finals)} done]"
        return f"{so_far} final {record.architecture.key} ({', '.join(record.roles)}): {_what(record)}{lead}{rest}"

    def _best(self) -> FinalRecord | None:
        """The final that wins if no other is better; a baseline cannot."""
        return next((one for one in final_ranking(self.finals) if competes(one)), None)

    def _ended(self) -> int:
        return sum(one.state in ("COMPLETE", "FAIL") for one in self.finals)

    def shown(self) -> Shown:
        """All finals, and a summary."""
        rows = []
        for one in self.finals:
            loss = f"{one.curve[-1][1]:.4f}" if one.curve else "-"
            style = "bold cyan" if one.state == "RUNNING" else "dim" if one.state == "WAITING" else ""
            cells = (one.architecture.key, ", ".join(one.roles), f"{_trained(one):,}", loss, STATES[one.state])
            rows.append((style, cells))
        best, seconds = self._best(), self.seconds_left()
        rest = "" if seconds == 0 else f", {left(seconds)}"
        text = f"{self._ended()} of {len(self.finals)} finals, {self.clock} so far{rest}"
        shown = f"{best.val_loss:.4f} {best.architecture.key}" if best else ""
        return rows, summary(self._ended(), len(self.finals), text, shown)


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
