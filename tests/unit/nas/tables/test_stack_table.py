"""The table of the stack: every stage on and off, and figures a person can read."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.tables import stack as table_module
from nas.tables.stack import ALL, ROWS, measured, stack_table
from nas.tables.study_table import csv_text, markdown
from nas.tables.writer import MAKERS
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.evaluate.stages import InferenceCosts, StageCosts, Stages, TrainingCosts
from trials.stack import StageSpec

STUDENT = Architecture.uniform(2, 48, 2, 96)


def plan_of(teacher: Path, output: Path, **more: Any) -> Plan:
    given: Mapping[str, Any] = {"model": teacher, "output": output, "corpus": "stdlib", "space": "stack", **more}
    settings = load_settings({name: str(value) for name, value in given.items()}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


@pytest.fixture
def plan(tiny_teacher_folder: Path, tmp_path: Path) -> Plan:
    return plan_of(tiny_teacher_folder, tmp_path, tolerance=0.2)


def costs_of(spec: StageSpec) -> StageCosts:
    training = TrainingCosts(15, 0.1234567, 0.01, 100_000_000, 7)
    inference = InferenceCosts(10, 17_377_024, 70_000_000, 8, 128, 32, 2912.2, 65.25, 18.13, 341.3, 52.2, 2.0)
    return StageCosts(spec.stages, spec.trial.architecture.key, training, inference)


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[StageSpec]:
    """The specs that a table asks for, in order; nothing is trained."""
    asked: list[StageSpec] = []

    def run(spec: StageSpec) -> StageCosts:
        asked.append(spec)
        return costs_of(spec)

    monkeypatch.setattr(table_module, "run_stage", run)
    return asked


def test_every_stage_is_shown_on_and_off() -> None:
    """Next to each row with a stage there is one that differs in it alone; adapters and their pruning go together."""
    shown = set(ROWS.values())
    for stage in (one.name for one in fields(Stages)):
        less = {one.name: getattr(ALL, one.name) for one in fields(Stages)} | {stage: False}
        assert Stages(**{**less, "pruned": less["pruned"] and less["lora"]}) in shown
    assert Stages() in shown
    assert len(shown) == len(ROWS)


def test_rows_use_the_student_or_the_teacher_and_folders_of_their_own(
    plan: Plan, specs: list[StageSpec], tmp_path: Path
) -> None:
    lines: list[str] = []
    found = measured(plan, STUDENT, tmp_path, lines.append)
    assert list(found) == list(ROWS)
    assert [one.stages for one in specs] == list(ROWS.values())
    assert len({one.folder for one in specs}) == len(lines) == len(ROWS)
    for spec in specs:
        assert spec.trial.architecture == (STUDENT if spec.stages.distil else plan.target.shape.full)
        assert (spec.adapters.rank, spec.adapters.sparsity) == (8, 0.8)


def test_the_preset_asks_for_the_table_of_its_winner(plan: Plan, specs: list[StageSpec]) -> None:
    assert (plan.settings.table, plan.settings.budget) == ("stack", "60%")
    winner = SimpleNamespace(record=SimpleNamespace(architecture=STUDENT))
    table = MAKERS["stack"](cast(Any, [SimpleNamespace(plan=plan, winner=winner)]))
    assert STUDENT.key in table.title
    assert len(table.rows) == len(specs) == len(ROWS)
    assert all(plan.folder in one.folder.parents for one in specs)


def test_people_read_rounded_figures_and_programs_read_all_digits(
    plan: Plan, specs: list[StageSpec], tmp_path: Path
) -> None:
    table = stack_table(measured(plan, STUDENT, tmp_path, lambda line: None), plan)
    page = markdown(table)
    assert "| distilled student | 7 | 0.123 | 0.010 | 100 | 17.4 | 70 | 2,912 | 65.2 | 18.1 | 341 | 52 | 7.39 |" in page
    assert "Labels are shifted by one token, and nothing is padding." in page
    header, first, *_ = list(csv.reader(io.StringIO(csv_text(table))))
    assert len(set(header)) == len(header), "a program reads columns by name"
    assert first[header.index("s/batch")] == "0.1234567"


@pytest.mark.parametrize(("package", "extra"), [("peft", "lora"), ("bitsandbytes", "quant")])
def test_a_missing_extra_is_named_before_anything_starts(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))
    with pytest.raises(InputError, match=rf"--table stack: the package {package} .*; install llm-nas\[{extra}\]"):
        plan_of(tiny_teacher_folder, tmp_path, tolerance=0.2)
