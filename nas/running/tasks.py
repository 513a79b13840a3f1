"""What workers do. Each task is a generator of results, and an argument of `nas.running.workers.work`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from nas.planning.log_messages import log_messages
from nas.running.client import FINAL, LOSS, METRICS, TOKENS, WORKER
from search_spaces.allocation import NeuronValues
from trials.distill.checkpoint import Rung
from trials.evaluate.reading import Reading
from trials.evaluate.tasks import HarnessTask
from trials.evaluate_on_tests import EvaluationSpec, check_tests, evaluate_on_tests
from trials.final import FinalResult, FinalSpec, run_final
from trials.losses.precision import training_precision
from trials.losses.window_losses import WindowLosses
from trials.preparation import Preparation, keep_text, prepare, prepare_targets, shared, teacher_windows
from trials.prune.importance import ImportanceScores
from trials.prune.neuron_value import neuron_values
from trials.recipe import Recipe
from trials.screen import latency, screen
from trials.slices import SlicesSpec, measure_slices
from trials.text.evaluation_text import TextTask
from trials.text.validation import OF_TEXT
from trials.trial import TrialSpec, run_trial

Result = TypeVar("Result")


def kind_of(device: str) -> tuple[str, str]:
    """What losses depend on, and what times depend on: the kind of arithmetic, and the device, of this worker."""
    dtype, _ = training_precision(device)
    number = str(dtype).removeprefix("torch.")
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return f"{name}, {number}", name
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "CPU")
    return f"CPU, {number}", name


class PreparedTeacher(NamedTuple):
    """What the driver needs to know of the prepared teacher.

    ``shares`` (H,) are the shares of each principal component in the square of the teacher's residual stream; None in a
    study without a refit.
    ``windows`` are the teacher's own losses on all validation windows. ``neuron_values`` are None unless the space has
    sizes by layer.
    """

    preparation: Preparation
    scores: ImportanceScores
    shares: NDArray[np.float32] | None
    windows: WindowLosses
    neuron_values: NeuronValues | None


class PreparationSpec(NamedTuple):
    """What to prepare. ``tests`` are checked first; ``by_layer`` asks for the values of neurons.

    Finals train on ``final_tokens`` more tokens than trials.
    """

    recipe: Recipe
    cache: str
    device: str
    tests: tuple[TextTask | HarnessTask, ...] = ()
    test_tokens: int | None = None
    by_layer: bool = False
    final_tokens: int = 0


def preparation_task(spec: PreparationSpec) -> Iterator[str | PreparedTeacher]:
    """Yield the name of each step as it begins, then the result. Raises InputError for a wrong model or text."""

    def do(emit: Callable[[str | PreparedTeacher], None]) -> None:
        given = spec.recipe, spec.cache, spec.device
        with log_messages(emit):
            if spec.tests:
                check_tests(spec.recipe.model, spec.tests, spec.test_tokens)
            preparation, common = prepare(*given), shared(*given)
            values = neuron_values(common.scores, common.streams) if spec.by_layer else None
            windows = teacher_windows(*given)
            if spec.final_tokens:
                keep_text(*given, spec.final_tokens)
        shares = common.streams.shares.numpy() if spec.recipe.refit else None
        emit(PreparedTeacher(preparation, common.scores, shares, windows, values))

    return generated(do)


def targets_task(given: tuple[PreparationSpec, int, int]) -> Iterator[None]:
    """Compute one share of the teacher's targets. ``given`` are spec, number of this share, and number of shares."""
    spec, place, shares = given
    prepare_targets(spec.recipe, spec.cache, spec.device, place, shares)
    yield from ()


def screen_task(spec: TrialSpec) -> Iterator[float]:
    """Yield the loss of one student before retraining."""
    yield screen(spec)


def latency_task(spec: TrialSpec) -> Iterator[float]:
    """Yield the latency of one architecture."""
    yield latency(spec)


def slices_task(spec: SlicesSpec) -> Iterator[int]:
    """Measure the losses of slices together, and yield how many were not known."""
    yield measure_slices(spec)


def readings_task(spec: EvaluationSpec) -> Iterator[list[Reading]]:
    """Yield the readings of one model on test text."""
    yield evaluate_on_tests(spec)


def trial_task(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run one trial: yield a result for Tune at each rung, and one with `FINAL` at the end."""
    where = {WORKER: f"{ray.util.get_node_ip_address()}:{os.getpid()}"}

    def do(emit: Callable[[dict[str, Any]], None]) -> None:
        def report(tokens: int, metrics: dict[str, float]) -> None:
            emit({**metrics, TOKENS: tokens, **where})

        result = run_trial(TrialSpec.from_dict(spec), report)
        metrics = {
            name: float(value) for name, value in result.to_dict().items() if name in METRICS and value is not None
        }
        metrics.update({f"{OF_TEXT}{name}": loss for name, loss in result.losses.items()})
        emit({FINAL: True, LOSS: result.val_loss, **metrics, **where})

    return generated(do)


def final_task(spec: FinalSpec) -> Iterator[Rung | FinalResult]:
    """Run one final: yield each rung, then the result."""

    def do(emit: Callable[[Rung | FinalResult], None]) -> None:
        emit(run_final(spec, lambda tokens, metrics: emit(Rung(tokens, metrics))))

    return generated(do)


class _Abandoned(BaseException):
    """Ends work whose results nobody reads any more. No `except Exception` on its way mistakes it for a failure."""


def generated(do: Callable[[Callable[[Result], None]], None]) -> Iterator[Result]:
    """Turn a function that emits results by a callback into a generator of these results.

    ``do`` runs in a thread of its own. It waits after each result until the next one is wanted, and ends there when
    the generator is closed. An error in ``do`` is raised here.
    """
    results: SimpleQueue[tuple[Result] | BaseException | None] = SimpleQueue()
    wanted: SimpleQueue[bool] = SimpleQueue()

    def emit(one: Result) -> None:
        results.put((one,))
        if not wanted.get():
            raise _Abandoned

    def run() -> None:
        try:
            do(emit)
        except _Abandoned:
            return
        except BaseException as error:
            results.put(error)
        else:
            results.put(None)

    thread = Thread(target=run, name="task", daemon=True)
    thread.start()
    try:
        while (one := results.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one[0]
            wanted.put(True)
    finally:
        wanted.put(False)
        thread.join()
