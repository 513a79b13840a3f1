"""Fixed lists of tasks, run by as many workers as there are: measurements, finals and readings of test text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, TypeVar

from ray import cloudpickle

from nas.planning.errors import Failure, too_little_memory
from nas.running.jobs import Job, Retried, Started, Task, results_of
from nas.running.tasks import final_task, latency_task, readings_task, screen_task, slices_task
from nas.running.workers import Workers
from search_spaces.errors import InputError
from trials.distill.checkpoint import Rung
from trials.evaluate.reading import Reading
from trials.evaluate_on_tests import EvaluationSpec
from trials.final import FinalResult, FinalSpec
from trials.slices import SlicesSpec
from trials.trial import TrialSpec

Result = TypeVar("Result")
OnResult = Callable[[str, Result | Failure | None], None]
"""Is called in the driver's thread with the name of a task: with None when it starts, then with each result."""

FinalUpdate = Rung | FinalResult | Failure | None
"""What is known of a final: it has started (None), has reached a rung, is finished, or has failed."""


def run_finals(specs: Mapping[str, FinalSpec], workers: Workers, on_result: Callable[[str, FinalUpdate], None]) -> None:
    """Run the finals ``specs``, by name, in their order.

    A final is tried again, from its last checkpoint, when its worker or node dies or its surroundings fail. Each rung
    is passed on once. Raises InputError when a worker does, and when there is too little memory or no worker left.
    """
    known = set[tuple[str, int]]()

    def once(name: str, result: FinalUpdate) -> None:
        if isinstance(result, Rung):
            if (name, result.tokens) in known:  # a second attempt repeats it
                return
            known.add((name, result.tokens))
        on_result(name, result)

    _run_all(final_task, specs, workers, once, lambda spec: spec.trial.cache)


def run_readings(specs: Mapping[str, EvaluationSpec], workers: Workers, on_result: OnResult[list[Reading]]) -> None:
    """Evaluate the models ``specs``, by name. Retries and errors are as in `run_finals`."""
    _run_all(readings_task, specs, workers, on_result, lambda spec: spec.trial.cache)


def run_screens(specs: Mapping[str, TrialSpec], workers: Workers, on_result: OnResult[float]) -> None:
    """Measure the losses of ``specs``, by name, before retraining. Retries and errors are as in `run_finals`."""
    _run_all(screen_task, specs, workers, on_result, lambda spec: spec.cache)


def run_slices(specs: Mapping[str, SlicesSpec], workers: Workers, on_result: OnResult[int]) -> None:
    """Measure the losses of the slices of each of ``specs`` together. Retries and errors are as in `run_finals`."""
    _run_all(slices_task, specs, workers, on_result, lambda spec: spec.cache)


def run_timings(
    specs: Mapping[str, TrialSpec], workers: Workers, on_result: OnResult[float], hardware: str = ""
) -> None:
    """Measure the latencies of ``specs`` in milliseconds of a generated token, all on one kind of ``hardware``.

    They run one at a time, because they would slow each other down; or on as many GPUs as there are, one on each.
    """
    alone = workers.resources.gpus == 1.0
    _run_all(latency_task, specs, workers, on_result, lambda spec: spec.cache, None if alone else 1, hardware)


def _run_all(
    task: Task,
    specs: Mapping[str, Any],
    workers: Workers,
    on_result: OnResult[Any],
    folder: Callable[[Any], str],
    at_once: int | None = None,
    hardware: str = "",
) -> None:
    pickled, kind = cloudpickle.dumps(task), task.__name__.removesuffix("_task")
    jobs = {f"{kind} {name}": Job(pickled, spec, folder(spec)) for name, spec in specs.items()}
    names = dict(zip(jobs, specs, strict=True))
    with closing(results_of(workers, jobs, at_once, hardware)) as happened:
        for job, result in happened:
            if isinstance(result, Failure) and result.memory:
                raise InputError(too_little_memory(workers.count))
            if not isinstance(result, Retried):
                on_result(names[job], None if isinstance(result, Started) else result)
