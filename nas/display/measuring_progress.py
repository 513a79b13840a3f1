"""The progress of a measurement of many architectures: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nas.display.clock import Clock
from nas.study.trial_records import SCREENED, TIMED

LINES = 10  # of progress, without a terminal
BEST = {SCREENED: "best before retraining {key}: {value:.4f}", TIMED: "fastest {key}: {value:.2f} ms a token"}


class MeasuringProgress:
    """Shows how many of ``total`` architectures are measured, and the best value so far."""

    def __init__(self, console: Console, clock: Clock, quantity: str, total: int, done: int) -> None:
        self.console, self.clock, self.quantity, self.total, self.done = console, clock, quantity, total, done
        columns = (TextColumn(quantity), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[best]}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=self.done, best="")

    def start(self) -> None:
        """Show the bar."""
        self._bar.start()

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def update(self, key: str, known: Mapping[str, float], problem: str) -> None:
        """The architecture ``key`` is measured, or could not be for ``problem``; ``known`` are all values so far."""
        if problem:
            self.console.print(f"{key} could not be {self.quantity}: {problem}", soft_wrap=True)
        self.done += 1
        best = min(known, key=known.__getitem__, default=None)
        text = "nothing so far" if best is None else BEST[self.quantity].format(key=best, value=known[best])
        self._bar.update(self._task, completed=self.done, best=text)
        if self._bar.disable and self.done * LINES // self.total > (self.done - 1) * LINES // self.total:
            so_far = f"[{self.clock}, {self.done}/{self.total} {self.quantity}]"
            self.console.print(f"{so_far} {text}", highlight=False, soft_wrap=True)
