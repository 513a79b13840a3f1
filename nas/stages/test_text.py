"""Readings on test text for the final table, taken when everything is chosen."""

from __future__ import annotations

import time
from dataclasses import replace

from rich.console import Console

from nas.choosing.comparison import TEACHER, Comparison, ComparisonRow
from nas.display.readings_table import column_name, figure
from nas.display.trial_progress import clock
from nas.planning.errors import Failure
from nas.planning.plan import Plan
from nas.running.task_lists import run_readings
from nas.running.tune_run import architecture_spec
from nas.running.workers import Workers
from nas.stages.finish import student_of
from trials.evaluate.reading import Reading
from trials.evaluate_on_tests import ReadingSpec


def with_test_readings(plan: Plan, comparison: Comparison, workers: Workers, console: Console) -> Comparison:
    """``comparison`` with readings of the teacher, the winner, the best stock candidate and the baselines.

    A model that could not be read has none, and the console says why; the next run of the command tries again.
    Raises InputError when a worker does.
    """
    if not plan.tests:
        return comparison
    rows = {_name(row): row for row in comparison.rows if row.is_read}
    specs = {name: _spec(plan, comparison, row) for name, row in rows.items()}
    readings: dict[str, tuple[Reading, ...]] = {}
    started = time.monotonic()
    console.print(f"reading {', '.join(task.name for task in plan.tests)} with {len(rows)} models ...")

    def hear(name: str, heard: list[Reading] | Failure | None) -> None:
        if heard is None:
            return
        if isinstance(heard, Failure):
            console.print(f"{name} could not be read: {heard.reason}", highlight=False, soft_wrap=True)
            return
        readings[name] = tuple(heard)
        figures = ", ".join(f"{column_name(one)} {figure(one.value, one.unit)}" for one in heard)
        done = f"[{clock(time.monotonic() - started)}, {len(readings)}/{len(rows)} done]"
        console.print(f"{done} {name}: {figures}", highlight=False, soft_wrap=True, markup=False)

    run_readings(specs, workers, hear)
    return replace(comparison, rows=tuple(replace(row, test=readings.get(_name(row), ())) for row in comparison.rows))


def _name(row: ComparisonRow) -> str:
    return " ".join([", ".join(row.roles), row.architecture]).strip()


def _spec(plan: Plan, comparison: Comparison, row: ComparisonRow) -> ReadingSpec:
    """Any trial says which teacher it is; a student is that of its final."""
    final = next((one for one in comparison.finals if one.architecture.key == row.architecture), comparison.winner)
    weights = None if TEACHER in row.roles else str(student_of(plan, final))
    settings, trial = plan.settings, architecture_spec(plan, final.architecture)
    return ReadingSpec(trial, weights, plan.tests, settings.test_tokens, settings.test_dtype)
