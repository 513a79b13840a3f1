"""Which students stay on disk while trials run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tracking_reference import record

from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.stages.try_candidates import KEPT_STUDENTS, KeptStudents
from search_spaces.architecture import Architecture


def make(teacher: Path, output: Path, **changes: Any) -> Plan:
    flags = {"model": teacher, "output": output, "corpus": "stdlib", "budget": "60%", "tolerance": "0.2", **changes}
    settings = load_settings({name: str(value) for name, value in flags.items()}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


def folders(plan: Plan) -> set[str]:
    return {one.name for one in (plan.folder / "trials").iterdir()}


def some(plan: Plan, count: int) -> list[Architecture]:
    """Custom architectures of the band that are no baselines."""
    shape = plan.target.shape
    return [one for one in plan.target.feasible if not shape.is_stock(one) and one not in plan.baselines.values()][
        :count
    ]


@pytest.mark.parametrize("objectives", ["loss", "loss,params"])
def test_the_best_the_best_stock_one_and_baselines_keep_their_students(
    tiny_teacher_folder: Path, tmp_path: Path, objectives: str
) -> None:
    plan = make(tiny_teacher_folder, tmp_path, objectives=objectives, finalists=1)
    stock = next(one for one in plan.target.feasible if plan.target.shape.is_stock(one))
    baseline = next(one for one in plan.baselines.values() if one != stock)
    custom = some(plan, 6)
    for one in (*custom, stock, baseline):
        (plan.trial_folder(one) / "student").mkdir(parents=True)
    parameters = plan.target.shape.parameters
    records = [
        record(
            place, architecture=one, parameters=parameters(one), stock=one == stock, val_loss=loss, curve=((64, loss),)
        )
        for place, (one, loss) in enumerate(zip((*custom, stock), (6.0, 1.0, 5.0, 2.0, 4.0, 3.0, 9.0), strict=True))
    ]
    stopped = record(7, "PRUNED", architecture=baseline, parameters=parameters(baseline))
    students = KeptStudents(plan, [])
    for one in (*records, stopped):
        students.update(one)
    kept = folders(plan)
    assert {stock.key, baseline.key, custom[1].key} <= kept
    if objectives == "loss":
        assert kept == {stock.key, baseline.key, *(custom[place].key for place in (1, 3, 5))}
        assert KEPT_STUDENTS == 3
    again = KeptStudents(plan, [*records, stopped])  # a continued search comes to the same
    assert folders(plan) == kept
    again.update(record(8, "RUNNING", architecture=custom[0], parameters=parameters(custom[0])))
    assert folders(plan) == kept
