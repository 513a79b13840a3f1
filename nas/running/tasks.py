"""What workers do, each task a generator of what it has to say; the first argument of `nas.running.workers.work`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from nas.running.client import FINAL, LOSS, METRICS, TOKENS, WORKER
from search_spaces.allocation import NeuronValues
from trials.distill.checkpoint import Rung
from trials.evaluate.reading import Reading
from trials.evaluate_on_tests import ReadingSpec, check_tests, read_model
from trials.final import FinalResult, FinalSpec, run_final
from trials.losses.window_losses import OF_TEXT, WindowLosses
from trials.preparation import Preparation, prepare, prepare_targets, shared, teacher_windows
from trials.prune.importance import ImportanceScores
from trials.prune.neuron_value import neuron_values
from trials.recipe import Recipe
from trials.screen import latency, screen
from trials.text.evaluation_text import TextTask
from trials.trial import TrialSpec, run_trial

Said = TypeVar("Said")


class Prepared(NamedTuple):
    """What the driver has to know of it; ``teacher`` are the teacher's own losses on all validation windows.

    ``shares`` (H,) of the square of the teacher's stream lie in each of its principal components. ``neuron_values`` are
    None unless the space has sizes by layer.
    """

    preparation: Preparation
    scores: ImportanceScores
    shares: NDArray[np.float32]
    teacher: WindowLosses
    neuron_values: NeuronValues | None


class PreparationSpec(NamedTuple):
    """What is to be prepared; ``tests`` are checked first, ``by_layer`` asks for the values of neurons."""

    recipe: Recipe
    cache: str
    device: str
    tests: tuple[TextTask, ...] = ()
    test_tokens: int | None = None
    by_layer: bool = False


def preparation_task(spec: PreparationSpec) -> Iterator[str | Prepared]:
    """What is being made, as it begins, and in the end the result. Raises InputError for a wrong model or text."""

    def do(say: Callable[[str | Prepared], None]) -> None:
        given = spec.recipe, spec.cache, spec.device
        with _logged(say):
            if spec.tests:
                check_tests(spec.recipe.model, spec.tests, spec.test_tokens)
            preparation, common = prepare(*given), shared(*given)
            values = neuron_values(common.scores, common.streams) if spec.by_layer else None
            windows = teacher_windows(*given)
        say(Prepared(preparation, common.scores, common.streams.shares.numpy(), windows, values))

    return step_by_step(do)


@contextmanager
def _logged(say: Callable[[str], None]) -> Iterator[None]:
    """Say what `trials` logs during the block."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger, handler = logging.getLogger("trials"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def targets_task(given: tuple[PreparationSpec, int, int]) -> Iterator[None]:
    """One share of the teacher's targets: a specification, the number of the share, and how many there are."""
    spec, place, shares = given
    prepare_targets(spec.recipe, spec.cache, spec.device, place, shares)
    yield from ()


def screen_task(spec: TrialSpec) -> Iterator[float]:
    """The loss of one student before retraining."""
    yield screen(spec)


def latency_task(spec: TrialSpec) -> Iterator[float]:
    """The latency of one architecture."""
    yield latency(spec)


def readings_task(spec: ReadingSpec) -> Iterator[list[Reading]]:
    """The readings of one model."""
    yield read_model(spec)


def trial_task(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One trial: results for Tune, one a rung, and at its end one with `FINAL`."""
    where = {WORKER: f"{ray.util.get_node_ip_address()}:{os.getpid()}"}

    def do(say: Callable[[dict[str, Any]], None]) -> None:
        result = run_trial(TrialSpec.from_dict(spec), lambda tokens, metrics: say({**metrics, TOKENS: tokens, **where}))
        metrics = {name: float(value) for name, value in result.to_dict().items() if name in METRICS}
        metrics.update({f"{OF_TEXT}{name}": loss for name, loss in result.losses.items()})
        say({FINAL: True, LOSS: result.val_loss, **metrics, **where})

    return step_by_step(do)


def final_task(spec: FinalSpec) -> Iterator[Rung | FinalResult]:
    """One final: its readings as they come, then its result."""

    def do(say: Callable[[Rung | FinalResult], None]) -> None:
        say(run_final(spec, lambda tokens, metrics: say(Rung(tokens, metrics))))

    return step_by_step(do)


class _GivenUp(BaseException):
    """Ends work that nobody wants any more; no `except Exception` on its way takes it for a failure."""


def step_by_step(do: Callable[[Callable[[Said], None]], None]) -> Iterator[Said]:
    """What ``do`` says, call by call, with ``do`` standing still in between, and ended there if that was all.

    ``do`` runs in a thread of its own, since it calls back and an iterator is asked. What it raises is raised here.
    """
    said: SimpleQueue[tuple[Said] | BaseException | None] = SimpleQueue()
    wanted: SimpleQueue[bool] = SimpleQueue()

    def say(one: Said) -> None:
        said.put((one,))
        if not wanted.get():
            raise _GivenUp

    def run() -> None:
        try:
            do(say)
        except _GivenUp:
            return
        except BaseException as error:
            said.put(error)
        else:
            said.put(None)

    thread = Thread(target=run, name="task", daemon=True)
    thread.start()
    try:
        while (one := said.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one[0]
            wanted.put(True)
    finally:
        wanted.put(False)
        thread.join()
