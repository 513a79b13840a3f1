"""Readings on test text for the final table. They are taken last: nothing that is chosen depends on them."""

from __future__ import annotations

from dataclasses import replace

from nas.choosing.comparison import TEACHER, Comparison, ComparisonRow
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

    A model that cannot be evaluated has no readings, and the next run of the command tries it again. Raises InputError
    when a worker does.
    """
    if not plan.tests:
        return comparison
    rows = {_name(row): row for row in comparison.rows if row.is_read}
    specs = {name: _spec(plan, comparison, row) for name, row in rows.items()}
    readings: dict[str, tuple[Reading, ...]] = {}

    def on_result(name: str, result: list[Reading] | Failure | None) -> None:
        if isinstance(result, Failure):
            announce(ModelEvaluated(name, problem=result.reason))
        elif result is not None:
            readings[name] = tuple(result)
            announce(ModelEvaluated(name, readings[name]))

    announce(EvaluationStarted(plan, len(rows)))
    run_readings(specs, workers, on_result)
    announce(StepEnded())
    return replace(comparison, rows=tuple(replace(row, test=readings.get(_name(row), ())) for row in comparison.rows))


def _name(row: ComparisonRow) -> str:
    return " ".join([", ".join(row.roles), row.architecture]).strip()


def _spec(plan: Plan, comparison: Comparison, row: ComparisonRow) -> EvaluationSpec:
    """The spec names the teacher by a trial, any trial; a student is that of its final."""
    final = next((one for one in comparison.finals if one.architecture.key == row.architecture), comparison.winner)
    weights = None if TEACHER in row.roles else str(final_student(plan, final))
    settings, trial = plan.settings, trial_spec(plan, final.architecture)
    return EvaluationSpec(trial, weights, plan.tests, settings.test_tokens, settings.test_dtype)
