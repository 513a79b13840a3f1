"""Part of stage 1: the losses of students that only lack layers, measured together before their trials."""

from __future__ import annotations

from nas.planning.errors import Failure
from nas.planning.plan import Plan
from nas.running.task_lists import run_slices
from nas.running.workers import Workers
from nas.stages.events import Listener, Progressed
from trials.slices import SlicesSpec

TOGETHER = 32  # slices of one task; neighbours in the order of their layers share most of their computation


def measure_slices(plan: Plan, workers: Workers, announce: Listener) -> None:
    """Measure the losses of the `Plan.slices`. Their trials read them, or measure what is missing for themselves.

    Raises InputError when a worker does.
    """
    subsets = sorted(plan.slices)
    parts = [tuple(subsets[start : start + TOGETHER]) for start in range(0, len(subsets), TOGETHER)]
    given = plan.recipe, str(plan.cache), plan.resources.device
    specs = {f"slices {place}": SlicesSpec(*given, part) for place, part in enumerate(parts)}
    done: list[str] = []

    def on_result(name: str, result: int | Failure | None) -> None:
        if isinstance(result, Failure):
            announce(Progressed(f"{name}: {result.reason}; the trials measure for themselves"))
        elif result is not None:
            done.append(name)
            count = sum(len(specs[one].subsets) for one in done)
            announce(Progressed(f"{count} of {len(subsets)} slices of the teacher are measured"))

    run_slices(specs, workers, on_result)
