"""The display prints a line for each event, and takes its live tables off the screen when a search stops."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from nas.display.display import Display
from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.stages.events import (
    ArchitectureMeasured,
    EvaluationStarted,
    Event,
    FinalChanged,
    FinalsStarted,
    MeasuringStarted,
    ModelEvaluated,
    Progressed,
    SearchStopped,
    StepEnded,
    TrialChanged,
    TrialsStarted,
)
from nas.study.records import FinalRecord, TrialRecord
from nas.study.trial_records import SCREENED
from trials.evaluate.reading import Reading


@pytest.fixture
def plan(tiny_teacher_folder: Path, tmp_path: Path) -> Plan:
    text = tmp_path / "unseen.txt"
    text.write_text("words of a text")
    flags = {"model": str(tiny_teacher_folder), "budget": "60%", "tolerance": "0.1", "test": f"unseen={text}"}
    settings = load_settings({**flags, "corpus": "stdlib", "tokens_per_trial": "4096"}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


def events(plan: Plan) -> list[tuple[Event, str]]:
    """Each event with a part of the line that it must print."""
    one = plan.target.feasible[0]
    trial = TrialRecord(0, one, 42_000, False, "RUNNING")
    final = FinalRecord(one, 42_000, False, 8192, ("finalist",), "RUNNING")
    reading = Reading("unseen", "non-overlapping windows", "token perplexity", 12.5, "per token")
    return [
        (Progressed("making [it] ..."), "[0:00] making [it] ..."),
        (MeasuringStarted(SCREENED, 1, 0), ""),
        (
            ArchitectureMeasured(SCREENED, one.key, {one.key: 3.5}),
            f"1/1 screened] best before retraining {one.key}: 3.5",
        ),
        (StepEnded(), ""),
        (TrialsStarted(plan, []), ""),
        (TrialChanged(trial), f"0/8 done] trial 0 {one.key}: started"),
        (StepEnded(), ""),
        (FinalsStarted(plan, [final]), ""),
        (FinalChanged([final], final), f"0/1 done] final {one.key} (finalist): started"),
        (StepEnded(), ""),
        (EvaluationStarted(plan, 2), "evaluating 2 models on unseen"),
        (ModelEvaluated("teacher", [reading]), "1/2 done] teacher: unseen ppl 12.50"),
        (ModelEvaluated("winner", problem="out of memory"), "winner could not be evaluated: out of memory"),
    ]


def test_one_clock_counts_through_all_stages(plan: Plan) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, width=200))
    for place, (event, _) in enumerate(events(plan)):
        display.clock.started -= 60
        start = text.tell()
        display(event)
        if found := re.match(r"\[(\d+):\d\d", text.getvalue()[start:]):
            assert int(found[1]) == place + 1


def test_every_event_prints_its_line(plan: Plan) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, width=200))
    for event, part in events(plan):
        start = text.tell()
        display(event)
        printed = text.getvalue()[start:]
        assert part in printed
        assert printed.count("\n") == bool(part)


@pytest.mark.parametrize("last", range(1, 10))
def test_a_search_that_stops_anywhere_leaves_the_terminal_as_it_was(plan: Plan, last: int) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, width=120, force_terminal=True))
    for event, _ in events(plan)[:last]:
        display(event)
    display(SearchStopped(interrupted=True))
    hidden, shown = text.getvalue().count("\x1b[?25l"), text.getvalue().count("\x1b[?25h")  # the cursor
    assert hidden == shown
    assert hidden == sum(
        isinstance(one, (MeasuringStarted, TrialsStarted, FinalsStarted)) for one, _ in events(plan)[:last]
    )
    before = text.getvalue()
    display(StepEnded())  # nothing is left to stop
    assert text.getvalue() == before
