"""The time left against a simulated search, whose end is known."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_outcome import made_plan
from rich.console import Console

from nas.choosing.selection import FINALIST
from nas.display.clock import Clock
from nas.display.final_progress import FinalProgress
from nas.display.pace import Pace
from nas.display.trial_progress import TrialProgress
from nas.planning.forecast import Work
from nas.planning.plan import Plan
from nas.study.records import FinalRecord, TrialRecord
from search_spaces.architecture import Architecture

FACTOR = 1.5  # how far the estimate may be off
Step = tuple[float, tuple[tuple[int, float], ...], str]
"""Seconds since the step before, the curve then, and the state."""


@pytest.fixture(scope="module")
def plan(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    flags = {"tokens_per_trial": 32_768, "batch_tokens": 1_024, "trials": 8}
    return made_plan(tiny_teacher_folder, tmp_path_factory.mktemp("out"), **flags)


def steps(rungs: list[int], making: float, a_token: float, last: str, curve: tuple = ()) -> Iterator[Step]:
    """The steps of a student that is made, unless it has a ``curve``, and then trained."""
    yield 0.0, curve, "RUNNING"
    if not curve:
        curve = ((0, 9.0),)
        yield making, curve, "RUNNING"
    for rung in rungs:
        seconds, curve = (rung - curve[-1][0]) * a_token, (*curve, (rung, 5.0))
        yield seconds, curve, "RUNNING"
    yield 0.0, curve, last


def played(students: dict[int, Iterator[Step]], workers: int) -> Iterator[tuple[float, int, tuple, str]]:
    """What happens when ``workers`` work on ``students`` in their order: (time, number, curve, state)."""
    waiting, busy = list(students), list[tuple[float, int, Step]]()
    now = 0.0
    while waiting or busy:
        while waiting and len(busy) < workers:
            number = waiting.pop(0)
            seconds, *rest = next(students[number])
            heapq.heappush(busy, (now + seconds, number, (seconds, *rest)))
        now, number, (_, curve, state) = heapq.heappop(busy)
        yield now, number, curve, state
        if (following := next(students[number], None)) is not None:
            heapq.heappush(busy, (now + following[0], number, following))


def estimates(plan: Plan, making: float, a_token: float, full: int) -> tuple[list[tuple[float, float | None]], float]:
    """(time, time left) whenever a trial or final has ended, and the time of the end. ``full`` trials are complete."""
    time, found = [0.0], list[tuple[float, float | None]]()
    console, clock, pace = Console(file=io.StringIO(), width=100), Clock(), Pace(now=lambda: time[0])
    rungs = list(plan.recipe.rungs)
    keys = [Architecture.uniform(3, 8 * place, 4, 96) for place in range(1, plan.trials + 4)]
    trials = {
        place: steps(rungs if place < full else rungs[:1], making, a_token, "COMPLETE" if place < full else "PRUNED")
        for place in range(plan.trials)
    }
    progress = TrialProgress(console, clock, pace, plan, [])
    for now, number, curve, state in played(trials, plan.resources.workers):
        time[0] = now
        loss = 5.0 if state == "COMPLETE" else None
        progress.update(TrialRecord(number, keys[number], 1, True, state, None, loss, curve))
        if state != "RUNNING":
            found.append((now, progress.seconds_left()))
    between, tokens = time[0], plan.recipe.tokens + plan.final_tokens
    whole = ((0, 9.0), *((rung, 5.0) for rung in rungs))
    later = [plan.recipe.tokens + rung for rung in rungs]
    records = [
        *(FinalRecord(keys[place], 1, True, tokens, (FINALIST,), curve=whole) for place in range(3)),
        *(FinalRecord(keys[-place], 1, True, tokens, ("random",)) for place in (1, 2, 3)),
    ]
    finals = {
        place: steps(later if one.curve else rungs + later, making, a_token, "COMPLETE", one.curve)
        for place, one in enumerate(records)
    }
    ending = FinalProgress(console, clock, pace, plan, records)
    for now, number, curve, state in played(finals, plan.resources.workers):
        time[0] = between + now
        loss = 5.0 if state == "COMPLETE" else None
        records[number] = FinalRecord(**{**vars(records[number]), "state": state, "curve": curve, "val_loss": loss})
        ending.update(records, records[number])
        if state != "RUNNING":
            found.append((time[0], ending.seconds_left()))
    return found, time[0]


@settings(max_examples=30)
@given(
    making=st.floats(0.1, 60), share=st.floats(0.05, 0.95), full=st.integers(2, 4), workers=st.sampled_from([1, 2, 4])
)
def test_the_time_left_is_right_from_the_end_of_the_first_trial(
    plan: Plan, making: float, share: float, full: int, workers: int
) -> None:
    """Whatever share of a trial it takes to make its student."""
    object.__setattr__(plan, "resources", type(plan.resources)(workers, 1, 0.0))
    a_token = making * (1 - share) / share / plan.recipe.tokens
    found, end = estimates(plan, making, a_token, full)
    for now, left in found[: plan.trials]:
        assert left is not None
        assert (end - now) / FACTOR < left < (end - now) * FACTOR, (now, left, end)
    assert found[-1][1] == 0


def test_nothing_is_known_before_anything_was_seen() -> None:
    pace = Pace()
    assert pace.seconds(Work(1, 1), 1) is None
    pace.note("a", None)
    assert pace.seconds(Work(1, 1), 1) is None


def test_a_student_that_goes_on_from_a_checkpoint_was_not_made() -> None:
    time = [0.0]
    pace = Pace(now=lambda: time[0])
    pace.note("a", 100)
    time[0] = 10.0
    pace.note("a", 200)
    pace.note("a", 200, ended=True)
    assert pace.seconds(Work(5, 1_000), 2) == pytest.approx(50.0)
    pace.note("b", None)
    time[0] = 13.0
    pace.note("b", 0)
    assert pace.seconds(Work(2, 0), 1) == pytest.approx(6.0)
