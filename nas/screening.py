"""Before the first trial: what every architecture of the band is worth before any retraining."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nas.candidates import informed
from nas.errors import Failure
from nas.plan import Plan
from nas.progress import clock
from nas.runner import architecture_spec
from nas.study import SearchStudy
from nas.tasks import run_screens
from search_spaces.architecture import Architecture

LINES = 10  # of progress, where there is no terminal


def run_screening(plan: Plan, study: SearchStudy, console: Console) -> None:
    """Screen what is left of ``plan.screened`` (see `trials.screen`), and keep every loss in the study as it comes.

    Nothing is left once all trials are done. Raises InputError when a worker does.
    """
    known = study.screened()
    left = {one.key: one for one in plan.screened if one.key not in known}
    if not left or study.finished() >= plan.trials:
        return
    if known:
        console.print(f"study {plan.study}: {len(plan.screened) - len(left)} screenings are done already")
    with _Shown(console, plan, study, left) as shown:
        specs = {key: architecture_spec(plan, one) for key, one in left.items()}
        run_screens(specs, plan.resources, shown.hear)


def first_candidates(plan: Plan, screened: Mapping[str, float]) -> list[tuple[str, Architecture]]:
    """Whom a budget tries first, each with why: the best of all and the best stock one where they were ``screened``.

    The best stock one for the sake of the comparison: the sampler alone might never come to it.
    """
    if plan.settings.sampler == "exhaustive":
        return []
    if plan.settings.sampler != "screen":
        return informed(plan.target.shape, plan.target.feasible)
    order = sorted((one for one in plan.screened if one.key in screened), key=lambda one: screened[one.key])
    stock = [one for one in order if plan.target.shape.is_stock(one)]
    chosen = dict.fromkeys(order[:1], "best before retraining")
    for one in stock[:1]:
        chosen.setdefault(one, "best stock before retraining")
    return [(why, one) for one, why in chosen.items()]


class _Shown:
    """Tells the study, and shows how far it is: a bar on a terminal, a few lines elsewhere."""

    def __init__(self, console: Console, plan: Plan, study: SearchStudy, left: dict[str, Architecture]) -> None:
        self.console, self.study, self.left = console, study, left
        self.total, self.done, self.started = len(plan.screened), len(plan.screened) - len(left), time.monotonic()
        columns = (TextColumn("screening"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[best]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=self.total, completed=self.done, best="")

    def __enter__(self) -> _Shown:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def hear(self, key: str, heard: float | Failure | None) -> None:
        """A screening has started (None), or has ended with its loss or why there is none."""
        if heard is None:
            return
        if isinstance(heard, Failure):
            self.console.print(f"{key}: not screened: {heard.reason}", soft_wrap=True)
        self.study.screen(self.left[key], None if isinstance(heard, Failure) else heard)
        self.done += 1
        best = self._best()
        self.bar.update(self.task, completed=self.done, best=best)
        if self.bar.disable and (self.done * LINES // self.total > (self.done - 1) * LINES // self.total):
            so_far = f"[{clock(time.monotonic() - self.started)}, {self.done}/{self.total} screened]"
            self.console.print(f"{so_far} {best}", highlight=False, soft_wrap=True)

    def _best(self) -> str:
        screened = self.study.sampler.screened
        if not screened:
            return "none has a loss so far"
        key = min(screened, key=screened.__getitem__)
        return f"best before retraining {key}: {screened[key]:.4f}"
