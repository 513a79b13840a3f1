"""Which architectures are screened and timed, that none is measured twice, and which are tried first."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from tracking_reference import record

from nas.choosing.screening import first_candidates
from nas.display import measuring_progress
from nas.display.display import Display
from nas.planning.errors import Failure
from nas.planning.machine import Machine, Node, Resources
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.report.screening_report import plot_screening, screening_csv
from nas.running.workers import Workers
from nas.stages import measure
from nas.stages.events import Announcer
from nas.stages.prepare import Prepared, within_latency
from nas.stages.screen import screen
from nas.study.objectives import dominated_by
from nas.study.study import SearchStudy
from nas.study.trial_records import SCREENED, TIMED
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.trial import TrialSpec

OnResult = Callable[[str, float | Failure | None], None]
NOBODY = Workers(Resources(1, 1, 0))
TEACHER: Any = None  # the stage does not look at it


def loss_of(one: Architecture) -> float:
    return 3 + abs(one.depth - 2) + one.hidden / 1000 - one.mlp[0] / 1e5


class Runner:
    """Takes the place of Ray: every screening ends at once with `loss_of`, or as ``outcome`` says."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.outcome: dict[int, float | Failure | BaseException] = {}

    def __call__(self, specs: Mapping[str, TrialSpec], workers: Workers, on_result: OnResult) -> None:
        for name, spec in specs.items():
            assert spec.architecture.key == name
            on_result(name, None)
            one = self.outcome.get(len(self.ran), loss_of(spec.architecture))
            self.ran.append(name)
            if isinstance(one, BaseException):
                raise one
            on_result(name, one)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner()
    monkeypatch.setitem(measure.RUNS, SCREENED, runner)
    return runner


def make(teacher: Path, output: Path, **changes: Any) -> Plan:
    flags = {"model": teacher, "output": output, "corpus": "stdlib", "budget": "60%", "tolerance": "0.1"}
    flags = {**flags, "sampler": "screen", **changes}
    settings = load_settings({name: str(value) for name, value in flags.items()}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


@pytest.fixture
def plan(tiny_teacher_folder: Path, tmp_path: Path) -> Plan:
    return make(tiny_teacher_folder, tmp_path)


def study_of(plan: Plan) -> SearchStudy:
    target, settings = plan.target, plan.settings
    return SearchStudy(
        plan.storage,
        "s",
        target.space,
        target.feasible,
        sampler=settings.sampler,
        seed=0,
        identity={},
        objectives=plan.objectives,
    )


def screened(plan: Plan) -> str:
    """Screen, and return what the display prints."""
    console, announce = Console(file=io.StringIO(), width=120), Announcer()
    announce.listeners.append(Display(console))
    screen(Prepared(0.0, plan, study_of(plan), TEACHER), NOBODY, announce)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_trials_come_in_the_order_of_the_screening_the_best_stock_one_second(plan: Plan, runner: Runner) -> None:
    said = screened(plan)
    assert f"{len(plan.target.feasible)}/{len(plan.target.feasible)} screened" in said
    assert said.count("\n") == measuring_progress.LINES
    study, order = study_of(plan), sorted(plan.target.feasible, key=loss_of)
    study.queue(first_candidates(plan, study.kept(SCREENED)))
    asked = [study.ask() for _ in order]
    assert study.ask() is None
    stock = next(one for one in order if plan.target.shape.is_stock(one))
    assert stock not in order[:1]
    expected = [order[0], stock, *(one for one in order[1:] if one != stock)]
    assert [one.architecture for one in asked if one] == expected
    assert [one.origin for one in study.records()][:3] == [
        "best before retraining",
        "best stock before retraining",
        "screen",
    ]
    assert [one.metrics["screen_loss"] for one in study.records()] == [loss_of(one) for one in expected]


def test_what_was_screened_before_an_interrupt_is_kept_and_not_done_again(plan: Plan, runner: Runner) -> None:
    runner.outcome[3] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        screened(plan)
    assert f"3 of {len(plan.target.feasible)} architectures are screened already" in screened(plan)
    assert len(runner.ran) == len(plan.target.feasible) + 1
    assert runner.ran.count(runner.ran[3]) == 2
    assert screened(plan) == ""
    assert study_of(plan).kept(SCREENED) == {one.key: loss_of(one) for one in plan.target.feasible}


def test_a_screening_that_fails_costs_the_architecture_its_place_and_nothing_else(plan: Plan, runner: Runner) -> None:
    feasible = plan.target.feasible
    runner.outcome = {0: Failure("out of memory", retry=False), 1: float("nan")}
    assert f"{feasible[0].key} could not be screened: out of memory" in screened(plan)
    study = study_of(plan)
    assert [study.kept(SCREENED)[one.key] for one in feasible[:3]] == [
        None,
        None,
        loss_of(feasible[2]),
    ]
    asked = [one.architecture for _ in feasible if (one := study.ask())]
    assert set(asked[:-2]) == set(feasible[2:])
    assert set(asked[-2:]) == set(feasible[:2])


def test_a_screening_that_a_retry_may_mend_is_open_to_the_next_run(plan: Plan, runner: Runner) -> None:
    runner.outcome = {0: Failure("its node went away", retry=True)}
    screened(plan)
    assert plan.target.feasible[0].key not in study_of(plan).kept(SCREENED)
    screened(plan)
    assert runner.ran[-1] == runner.ran[0]
    assert study_of(plan).kept(SCREENED)[plan.target.feasible[0].key] == loss_of(plan.target.feasible[0])


def test_of_a_larger_band_the_rounds_follow_what_was_found_and_one_that_may_be_mended_holds_no_other_budget(
    tiny_teacher_folder: Path, tmp_path: Path, runner: Runner
) -> None:
    plan = make(tiny_teacher_folder, tmp_path, budget="80%,60%", screened=8)
    large, small = plan.parts
    runner.outcome = {0: Failure("its node went away", retry=True)}  # of the first half of the large one
    screened(plan)
    ran = [sum(one.key in runner.ran for one in part.target.feasible) for part in (large, small)]
    assert ran == [4, 8]
    assert "11 of 16 architectures are screened already" in screened(plan)
    assert len(set(runner.ran)) == 16
    assert len(runner.ran) == 17
    assert screened(plan) == ""


def test_table_and_picture_show_what_became_of_the_screened(plan: Plan, tmp_path: Path) -> None:
    first, second, third, *_ = plan.target.feasible
    losses = {first.key: 4.0, second.key: None, third.key: 3.0}
    records = [record(0, architecture=first, val_loss=2.5), record(1, "PRUNED", rungs=2)]
    lines = list(csv.DictReader(io.StringIO(screening_csv(losses, plan.target.feasible, plan.target.shape, records))))
    assert [line["architecture"] for line in lines] == [third.key, first.key, second.key]
    assert [line["rank"] for line in lines] == ["1", "2", "3"]
    assert [line["screen_loss"] for line in lines] == ["3.0", "4.0", ""]
    assert (lines[0]["val_loss"], lines[1]["tokens"]) == ("", "4096")
    assert int(lines[0]["parameters"]) == plan.target.shape.parameters(third)
    drawn = [imread(plot_screening(losses, some, tmp_path / "plot.png", first)) for some in (records, [])]
    assert not np.array_equal(*drawn)


def timed(plan: Plan, monkeypatch: pytest.MonkeyPatch, milliseconds: Callable[[Architecture], float]) -> Plan:
    """The plan within its limit, every architecture timed at ``milliseconds``."""

    def run(specs: Mapping[str, TrialSpec], workers: Workers, on_result: OnResult, hardware: str) -> None:
        for name, spec in specs.items():
            on_result(name, milliseconds(spec.architecture))

    monkeypatch.setitem(measure.RUNS, TIMED, run)
    return within_latency(plan, study_of(plan), NOBODY, Announcer())


class On:
    """Workers on one kind of device."""

    def __init__(self, *hardware: str) -> None:
        self.hardware = list(hardware)


def test_latencies_are_of_one_kind_of_device(plan: Plan) -> None:
    study = study_of(plan)
    assert measure.timed_on(study, On("H100", "A100")) == "H100"  # type: ignore[arg-type]
    assert measure.timed_on(study, On("A100", "H100")) == "H100"  # type: ignore[arg-type]
    assert study.recall(measure.TIMED_ON) == "H100"
    with pytest.raises(InputError, match="latencies were measured on H100, and there is A100 here"):
        measure.timed_on(study, On("A100"))  # type: ignore[arg-type]


def test_a_limit_of_latency_leaves_the_fast_ones_by_what_was_measured_first(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make(tiny_teacher_folder, tmp_path, max_latency_ms="2.5")
    assert plan.times_candidates
    assert {one.depth for one in plan.target.feasible} == {2, 3}
    limited = timed(plan, monkeypatch, lambda one: float(one.depth))
    assert {one.depth for one in limited.target.feasible} == {2}
    assert limited.trials <= len(limited.target.feasible)
    assert timed(plan, monkeypatch, lambda _: 99.0) == limited  # measured once
    assert study_of(plan).kept(TIMED) == {one.key: float(one.depth) for one in plan.target.feasible}


def test_students_that_name_other_layers_share_the_latency_of_their_sizes(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"space": "layer-removal", "budget": "100%", "tolerance": "0.999"}
    plan = make(tiny_teacher_folder, tmp_path, **every, max_latency_ms="2.5")
    assert [one.depth for one in plan.target.feasible].count(2) == 3
    asked: list[Architecture] = []

    def milliseconds(one: Architecture) -> float:
        asked.append(one)
        return float(one.depth)

    limited = timed(plan, monkeypatch, milliseconds)
    assert sorted((one.depth, one.kept_layers) for one in asked) == [(1, ()), (2, ()), (3, ())]
    assert {one.depth for one in limited.target.feasible} == {1, 2}
    study = study_of(plan)
    two = [one for one in plan.target.feasible if one.depth == 2]
    assert [study.costs(one) for one in two] == [(2.0,)] * 3


def test_a_limit_that_nothing_meets_names_the_fastest(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make(tiny_teacher_folder, tmp_path, max_latency_ms="0.5")
    with pytest.raises(InputError, match=r"--max-latency-ms 0\.5: budget 60%: the fastest architecture takes 2\.00"):
        timed(plan, monkeypatch, lambda one: float(one.depth))


def test_weighed_against_latency_the_front_of_the_screening_comes_first(
    tiny_teacher_folder: Path, tmp_path: Path, runner: Runner
) -> None:
    plan = make(tiny_teacher_folder, tmp_path, objectives="loss,latency")
    screened(plan)
    study = study_of(plan)
    for one in plan.target.feasible:
        study.keep(TIMED, one.key, float(one.hidden))
    points = {one: (loss_of(one), float(one.hidden)) for one in plan.target.feasible}
    members = {one for one, point in points.items() if not dominated_by(point, points.values())}
    assert len(members) > 1
    asked = [candidate.architecture for _ in members if (candidate := study.ask())]
    assert set(asked) == members
    assert asked[0] == min(plan.target.feasible, key=loss_of)
