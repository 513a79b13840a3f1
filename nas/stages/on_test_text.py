"""Readings on test text for the final tables. They are taken last: nothing that is chosen depends on them."""

from __future__ import annotations

from dataclasses import replace

from nas.choosing.comparison import TEACHER, WINNER, Comparison, ComparisonRow
from nas.planning.errors import Failure
from nas.planning.plan import Plan
from nas.planning.specs import final_student, trial_spec
from nas.running.task_lists import run_readings
from nas.running.workers import Workers
from nas.stages.events import EvaluationStarted, Listener, ModelEvaluated, StepEnded
from trials.evaluate.reading import Reading
from trials.evaluate_on_tests import EvaluationSpec


def with_test_readings(plan: Plan, comparison: Comparison, workers: Workers, announce: Listener) -> Comparison:
    """``comparison`` with readings of the teacher, the finalists and the baselines.

    If the plan asks for it, the winner and the baselines are evaluated before retraining too.
    A model that cannot be evaluated has no readings, and the next run of the command tries it again. Raises InputError
    when a worker does.
    """
    if not plan.tests:
        return comparison
    rows = {_name(row): row for row in comparison.rows if row.is_read}
    specs = {name: _spec(plan, comparison, row) for name, row in rows.items()}
    if plan.reads_untrained:
        shown = [name for name, row in rows.items() if compared_roles(plan, row)]
        specs |= {_before(name): replace(specs[name], weights=None, untrained=True) for name in shown}
    readings: dict[str, tuple[Reading, ...]] = {}

    def on_result(name: str, result: list[Reading] | Failure | None) -> None:
        if isinstance(result, Failure):
            announce(ModelEvaluated(name, problem=result.reason))
        elif result is not None:
            readings[name] = tuple(result)
            announce(ModelEvaluated(name, readings[name]))

    announce(EvaluationStarted(plan, len(specs)))
    run_readings(specs, workers, on_result)
    announce(StepEnded())
    names = [_name(row) for row in comparison.rows]
    found = [(readings.get(name, ()), readings.get(_before(name), ())) for name in names]
    rows_read = (
        replace(row, test=test, before=before) for row, (test, before) in zip(comparison.rows, found, strict=True)
    )
    return replace(comparison, rows=tuple(rows_read))


def compared_roles(plan: Plan, row: ComparisonRow) -> list[str]:
    """The roles of ``row`` that set ways of pruning against each other: the winner, and the names of baselines."""
    return [one for one in row.roles if one == WINNER or one in plan.baselines]


def _name(row: ComparisonRow) -> str:
    return " ".join([", ".join(row.roles), row.architecture]).strip()


def _before(name: str) -> str:
    return f"{name} before retraining"


def _spec(plan: Plan, comparison: Comparison, row: ComparisonRow) -> EvaluationSpec:
    """The spec names the teacher by a trial, any trial; a student is that of its final."""
    final = next((one for one in comparison.finals if one.architecture.key == row.architecture), comparison.winner)
    weights = None if TEACHER in row.roles else str(final_student(plan, final))
    settings, trial = plan.settings, trial_spec(plan, final.architecture)
    return EvaluationSpec(trial, weights, plan.tests, settings.test_tokens, settings.test_dtype)
