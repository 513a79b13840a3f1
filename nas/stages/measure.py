"""Before the first trial: what is measured of every architecture of the band without any retraining."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nas.choosing.screening import to_screen
from nas.display.trial_progress import clock
from nas.planning.candidates import informed
from nas.planning.errors import Failure
from nas.planning.plan import Plan
from nas.running.task_lists import run_screens, run_timings
from nas.running.tune_run import architecture_spec
from nas.running.workers import Workers
from nas.study.study import SCREENED, TIMED, SearchStudy
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.trial import TrialSpec

LINES = 10  # of progress, where there is no terminal

Hear = Callable[[str, float | Failure | None], None]
Run = Callable[[Mapping[str, TrialSpec], Workers, Hear], None]
Wanted = Callable[[Mapping[str, float | None]], Sequence[Architecture]]
"""What is to be measured, as far as the figures that are known, by key, decide it."""


@dataclass(frozen=True)
class Survey:
    """One figure of every architecture; less is better. ``name`` is the study's, ``figure`` says what it is."""

    name: str
    run: Run
    figure: str


SCREENING = Survey(SCREENED, run_screens, "best before retraining {key}: {value:.4f}")
TIMING = Survey(TIMED, run_timings, "fastest {key}: {value:.2f} ms a token")


def run_screening(plan: Plan, study: SearchStudy, workers: Workers, console: Console) -> None:
    """Screen what is left of `to_screen` (see `trials.screen.screen`); nothing is once all trials are done."""
    if study.finished() < plan.trials:
        _survey(SCREENING, plan, study, workers, console, partial(to_screen, plan), plan.screenings)


def within_latency(plan: Plan, study: SearchStudy, workers: Workers, console: Console) -> Plan:
    """``plan`` without the architectures that are slower than it allows, all measured one at a time.

    Raises InputError when none of a budget is fast enough, naming the fastest.
    """
    feasible = plan.target.feasible
    _survey(TIMING, plan, study, workers, console, lambda _: feasible, len(feasible))
    most, found = plan.settings.max_latency_ms, study.kept(TIMED)
    if most is None:
        return plan
    for part in plan.parts:
        measured = [value for one in part.target.feasible if (value := found.get(one.key)) is not None]
        if not measured or min(measured) > most:
            fastest = f"the fastest takes {min(measured):.2f}" if measured else "none could be measured"
            budget = part.target.budget.text
            raise InputError(
                f"--max-latency-ms {most:g}: of budget {budget} {fastest}; give more, or a smaller --budget"
            )
    fast = tuple(one for one in plan.target.feasible if (value := found.get(one.key)) is not None and value <= most)
    console.print(f"{len(fast)} of {len(plan.target.feasible)} architectures generate a token in {most:g} ms or less")
    return replace(plan, target=replace(plan.target, feasible=fast))


def first_candidates(plan: Plan, screened: Mapping[str, float | None]) -> list[tuple[str, Architecture]]:
    """Whom a budget tries first, each with why: the best of all and the best stock one where they were ``screened``.

    The best stock one for the sake of the comparison: the sampler alone might never come to it.
    """
    if plan.settings.sampler == "exhaustive":
        return []
    if plan.settings.sampler != "screen":
        return informed(plan.target.shape, plan.target.feasible)
    losses = {one: loss for one in plan.target.feasible if (loss := screened.get(one.key)) is not None}
    order = sorted(losses, key=losses.__getitem__)
    stock = [one for one in order if plan.target.shape.is_stock(one)]
    chosen = dict.fromkeys(order[:1], "best before retraining")
    for one in stock[:1]:
        chosen.setdefault(one, "best stock before retraining")
    return [(why, one) for one, why in chosen.items()]


def _survey(
    survey: Survey, plan: Plan, study: SearchStudy, workers: Workers, console: Console, wanted: Wanted, total: int
) -> None:
    """Measure what is left of ``wanted``, in the end ``total``, and keep every figure in the study as it comes.

    Raises InputError when a worker does.
    """

    def missing() -> dict[str, Architecture]:
        known = study.kept(survey.name)
        return {one.key: one for one in wanted(known) if one.key not in known}

    left, asked = missing(), set[str]()
    if not left:
        return
    if done := len(wanted(study.kept(survey.name))) - len(left):
        console.print(f"study {plan.study}: {done} of {total} are {survey.name} already")
    with _Shown(survey, console, study, done, total) as shown:
        while left:
            survey.run({key: architecture_spec(plan, one) for key, one in left.items()}, workers, shown.hear)
            asked |= left.keys()  # each once: what is still missing then is open to the next run
            left = {key: one for key, one in missing().items() if key not in asked}


class _Shown:
    """Tells the study, and shows how far it is: a bar on a terminal, a few lines elsewhere."""

    def __init__(self, survey: Survey, console: Console, study: SearchStudy, done: int, total: int) -> None:
        self.survey, self.console, self.study = survey, console, study
        self.total, self.done, self.started = total, done, time.monotonic()
        columns = (TextColumn(survey.name), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[best]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=total, completed=self.done, best="")

    def __enter__(self) -> _Shown:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def hear(self, key: str, heard: float | Failure | None) -> None:
        """A measurement has started (None), or has ended with its figure or why there is none.

        What a retry may mend is not kept: it is open to the next run.
        """
        if heard is None:
            return
        if isinstance(heard, Failure):
            self.console.print(f"{key} could not be {self.survey.name}: {heard.reason}", soft_wrap=True)
        if not (isinstance(heard, Failure) and heard.retry):
            self.study.keep(self.survey.name, key, None if isinstance(heard, Failure) else heard)
        self.done += 1
        best = self._best()
        self.bar.update(self.task, completed=self.done, best=best)
        if self.bar.disable and self.done * LINES // self.total > (self.done - 1) * LINES // self.total:
            so_far = f"[{clock(time.monotonic() - self.started)}, {self.done}/{self.total} {self.survey.name}]"
            self.console.print(f"{so_far} {best}", highlight=False, soft_wrap=True)

    def _best(self) -> str:
        found = {key: value for key, value in self.study.kept(self.survey.name).items() if value is not None}
        if not found:
            return "nothing so far"
        key = min(found, key=found.__getitem__)
        return self.survey.figure.format(key=key, value=found[key])
