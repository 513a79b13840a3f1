"""What a search shows while it runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nas.display.clock import Clock
from nas.display.console import clock
from nas.display.final_progress import FinalProgress
from nas.display.pace import Pace
from nas.display.trial_progress import TrialProgress
from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.study.records import FinalRecord, TrialRecord


@pytest.fixture
def plan(tiny_teacher_folder: Path) -> Plan:
    flags = {"model": str(tiny_teacher_folder), "budget": "60%", "tolerance": "0.1", "trials": "4"}
    settings = load_settings({**flags, "corpus": "stdlib", "tokens_per_trial": "4096"}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


def trials_on(console: Console, plan: Plan) -> TrialProgress:
    return TrialProgress(console, Clock(), Pace(), plan, [])


def finals_on(console: Console, plan: Plan, stage: list[FinalRecord]) -> FinalProgress:
    return FinalProgress(console, Clock(), Pace(), plan, stage)


def record(plan: Plan, number: int, state: str, *curve: tuple[int, float]) -> TrialRecord:
    architecture = plan.target.feasible[number]
    loss = curve[-1][1] if state == "COMPLETE" else None
    return TrialRecord(number, architecture, 42_000, False, state, "out of luck", loss, curve)


def test_plain_lines_say_what_changed(plan: Plan) -> None:
    text = io.StringIO()
    progress = trials_on(Console(file=text, width=200), plan)
    progress.start()
    for one in (
        record(plan, 0, "RUNNING"),
        record(plan, 0, "RUNNING", (0, 9.0), (1024, 5.0)),
        record(plan, 0, "COMPLETE", (0, 9.0), (4096, 4.0)),
        record(plan, 1, "FAIL"),
    ):
        progress.update(one)
    progress.stop()
    lines = text.getvalue().splitlines()
    key = plan.target.feasible[0].key
    assert f"0/4 done] trial 0 {key}: started (42,000 parameters" in lines[0]
    assert "val loss 5.0000 after 1,024 of 4,096 tokens" in lines[1]
    assert "1/4 done]" in lines[2]
    assert f"complete, best so far 4.0000 {key}" in lines[2]
    assert "failed: out of luck" in lines[3]


def test_live_table_shows_every_state(plan: Plan) -> None:
    text = io.StringIO()
    progress = trials_on(Console(file=text, width=120, force_terminal=True), plan)
    records = [
        record(plan, 0, "COMPLETE", (4096, 4.0)),
        record(plan, 1, "PRUNED", (1024, 6.0)),
        record(plan, 2, "RUNNING"),
    ]
    progress.start()
    for one in records:
        progress.update(one)
    progress.stop()
    shown = text.getvalue()
    for part in ("4.0000", "stopped early", "running", "2 of 4 trials", "best so far 4.0000"):
        assert part in shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61, "1:01"), (3_725, "1:02:05")])
def test_clock(seconds: int, shown: str) -> None:
    assert clock(seconds) == shown


def final(plan: Plan, number: int, state: str, *curve: tuple[int, float]) -> FinalRecord:
    loss = curve[-1][1] if state == "COMPLETE" else None
    roles = ("finalist", "width only")
    return FinalRecord(plan.target.feasible[number], 42_000, False, 8192, roles, state, "out of luck", loss, curve)


def test_plain_lines_of_finals_say_what_changed(plan: Plan) -> None:
    text = io.StringIO()
    stage = [final(plan, 0, "WAITING", (4096, 4.0)), final(plan, 1, "WAITING"), final(plan, 2, "WAITING")]
    progress = finals_on(Console(file=text, width=200), plan, stage)
    changes = [
        final(plan, 0, "RUNNING", (4096, 4.0)),
        final(plan, 0, "COMPLETE", (4096, 4.0), (8192, 3.5)),
        final(plan, 1, "RUNNING"),
        final(plan, 2, "FAIL"),
    ]
    progress.start()
    for place, one in zip((0, 0, 1, 2), changes, strict=True):
        stage[place] = one
        progress.update(stage, one)
    progress.stop()
    lines = text.getvalue().splitlines()
    key = plan.target.feasible[0].key
    assert f"0/3 done] final {key} (finalist, width only): val loss 4.0000 after 4,096 of 8,192 tokens" in lines[0]
    assert "1/3 done]" in lines[1]
    assert "val loss 3.5000 after 8,192 of 8,192 tokens, complete" in lines[1]
    assert "started, from the beginning" in lines[2]
    assert "2/3 done]" in lines[3]
    assert "failed: out of luck" in lines[3]


def test_live_table_of_finals_shows_every_state(plan: Plan) -> None:
    text = io.StringIO()
    states = ("COMPLETE", "RUNNING", "WAITING", "FAIL")
    stage = [final(plan, number, state, (4096, 4.0)) for number, state in enumerate(states)]
    progress = finals_on(Console(file=text, width=120, force_terminal=True), plan, stage)
    progress.start()
    progress.update(stage, stage[1])
    progress.stop()
    shown = text.getvalue()
    for part in ("4.0000", "complete", "running", "waiting", "failed", "2 of 4 finals", "finalist, width only"):
        assert part in shown


@pytest.mark.parametrize("width", range(60, 141, 8))
def test_live_tables_cut_words_and_never_digits(plan: Plan, width: int) -> None:
    roles = ("finalist", "nearest to width only", "best stock")
    long = [FinalRecord(one, 42_000, False, 9_999_999_999, roles) for one in plan.target.feasible[:3]]
    long = [replace(one, state="RUNNING", curve=((9_999_999_999, 12.3456),)) for one in long]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in (finals_on(console, plan, long).table(), trials_on(console, plan).table()):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("9,999,999,999") == text.count("12.3456") == len(long)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
