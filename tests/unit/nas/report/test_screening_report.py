"""What trials made of the order of the screening, where a reader finds it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tracking_reference import record

from nas.choosing.agreement import agreements
from nas.choosing.outcome import Chosen, Outcome
from nas.planning.machine import Machine, Node
from nas.planning.plan import make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.report.screening_report import reordering
from nas.report.terminal import print_result
from nas.report.writer import results
from nas.study.records import SCREEN_LOSS, TrialRecord
from search_spaces.architecture import Architecture
from trials.preparation import Preparation

SHAPES = [Architecture.uniform(2, 12 * heads, heads, 48) for heads in (1, 2, 3, 4)]
SCREENED = {one.key: 2.0 + place for place, one in enumerate(SHAPES)} | {f"other-{place}": 9.0 for place in range(54)}
BROKEN = {"could not be measured": None}
HEADING = "How well did early rankings agree with late ones?"


def trial(place: int, loss: float | None, state: str = "COMPLETE") -> TrialRecord:
    metrics = {SCREEN_LOSS: 2.0 + place}
    return record(place, state, architecture=SHAPES[place], val_loss=loss, metrics=metrics)


RECORDS = [trial(0, 1.0), trial(1, 1.2), trial(2, 1.1), trial(3, None, "PRUNED")]


def test_the_places_in_the_screening_are_in_the_order_after_training() -> None:
    expected = (
        "screening order of the complete trials, best first: 1 3 2; the winner was number 1 of 58 in the screening"
    )
    assert reordering(SCREENED | BROKEN, RECORDS, SHAPES[0]) == [expected]
    assert reordering(SCREENED, RECORDS, SHAPES[1])[0].endswith("the winner was number 2 of 58 in the screening")


def test_a_trial_that_was_not_screened_has_no_place() -> None:
    fewer = {key: loss for key, loss in SCREENED.items() if key != SHAPES[2].key}
    [line] = reordering(fewer, RECORDS, SHAPES[2])
    assert line == "screening order of the complete trials, best first: 1 - 2; the winner was not screened"


def test_a_search_without_a_screening_says_nothing() -> None:
    assert reordering({}, RECORDS, SHAPES[0]) == []
    assert reordering(BROKEN, RECORDS, SHAPES[0]) == []


@pytest.fixture
def outcome(tiny_teacher_folder: Path, tmp_path: Path) -> Outcome:
    flags = {"model": tiny_teacher_folder, "output": tmp_path, "corpus": "stdlib", "budget": "60%", "tolerance": "0.2"}
    settings = load_settings({name: str(value) for name, value in flags.items()}, None, {})
    plan = make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))
    chosen = Chosen(RECORDS[0], 1_000, 0, tmp_path)
    preparation = Preparation(plan.target.shape, "", 0.9, "a corpus", "", "", False, 1.0)
    return Outcome(
        plan=plan,
        preparation=preparation,
        records=RECORDS,
        winner=chosen,
        winner_path=tmp_path / "best",
        stock=chosen,
        stock_path=tmp_path / "best",
        comparison=None,
        agreements=agreements(RECORDS),
        screened=SCREENED,
        seconds=1.0,
    )


def test_results_and_the_terminal_say_how_far_trials_reordered_the_screening(outcome: Outcome) -> None:
    [line] = reordering(outcome.screened, outcome.records, SHAPES[0])
    section = results(outcome).partition(f"## {HEADING}")[2]
    assert f"- {line}\n" in section
    assert section.count("\n- ") == 1 + len(outcome.agreements) + 2
    console = Console(file=io.StringIO(), width=400)
    print_result([outcome], console, ["mlflow ui"])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert line in shown[shown.index(HEADING.lower()) :]


def test_without_a_screening_or_complete_trials_the_section_is_left_out(outcome: Outcome) -> None:
    assert HEADING not in results(replace(outcome, screened={}, agreements=[]))
    assert "screening" not in results(replace(outcome, screened={}, agreements=[]))
