"""A real search whose listeners all fail finds and exports its winner all the same."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from small_search import arguments, write_text

from nas.cluster.session import ray_session
from nas.pipeline import run_search
from nas.planning.machine import Machine, Node
from nas.planning.plan import make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.report.writer import ReportWriter
from nas.running.workers import Workers, open_workers
from nas.stages.events import (
    Announcer,
    Event,
    FinalsStarted,
    MeasuringStarted,
    SearchConcluded,
    SearchPrepared,
    SearchStopped,
    TrialsStarted,
)
from search_spaces.errors import InputError

STAGES = (SearchPrepared, MeasuringStarted, TrialsStarted, FinalsStarted, SearchConcluded)


def broken(event: Event) -> None:
    raise RuntimeError("nobody is at home")


def test_a_search_finds_its_winner_whatever_its_listeners_do(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
    flags = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path / "out", "deaf", finalists=1, trials=2)
    settings, _, _ = parse_arguments(flags)
    heard: list[Event] = []
    announce = Announcer()
    announce.listeners += [broken, ReportWriter(announce), heard.append]
    with ray_session(settings) as machine, caplog.at_level(logging.WARNING, "nas.stages.events"):
        plan = make_plan(settings, resolve_target(settings), machine)
        plan.folder.mkdir(parents=True)
        (plan.folder / "driver.json").touch()  # a study was here before
        (plan.folder / "report").write_text("a file where the report belongs")
        with open_workers(plan.resources, str(plan.output), machine) as workers:
            [outcome] = run_search(plan, workers, announce)
    assert (outcome.winner_path / "model.safetensors").is_file()
    assert [type(one) for one in heard if isinstance(one, STAGES)] == list(STAGES)
    warnings = [record.getMessage() for record in caplog.records]
    assert any(one.startswith("function failed at SearchPrepared (RuntimeError: nobody") for one in warnings)
    assert any(one.startswith("ReportWriter failed at BudgetConcluded (FileExistsError") for one in warnings)


def test_a_search_that_an_error_ends_says_so_once_and_raises_it(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    short = tmp_path / "short.txt"
    short.write_text("too few words\n\nfor one window")
    flags = arguments(tiny_teacher_folder, short, tmp_path / "out", "wrong")
    settings, _, _ = parse_arguments(flags)
    heard: list[Event] = []
    announce = Announcer()
    announce.listeners.append(heard.append)
    with ray_session(settings) as machine:
        plan = make_plan(settings, resolve_target(settings), machine)
        with (
            open_workers(plan.resources, str(plan.output), machine) as workers,
            pytest.raises(InputError, match="shorter than one window"),
        ):
            run_search(plan, workers, announce)
    assert [one for one in heard if isinstance(one, SearchStopped)] == [SearchStopped(interrupted=False)]
    assert heard[-1] == SearchStopped(interrupted=False)


def test_a_folder_of_something_else_is_never_taken_for_a_study(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "out" / "photos" / "tune" / "a.jpg"
    precious.parent.mkdir(parents=True)
    precious.write_text("of a holiday")
    flags = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path / "out", "photos")
    settings, _, _ = parse_arguments(flags)
    plan = make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))
    with pytest.raises(InputError, match="holds files of something else"):
        run_search(plan, Workers(plan.resources), Announcer())
    assert precious.read_text() == "of a holiday"
    assert [one.name for one in (tmp_path / "out" / "photos").iterdir()] == ["tune"]
