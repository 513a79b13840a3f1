"""Surveys, finals and readings of test text on Ray: fixed lists of tasks, as many at a time as trials."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from nas.errors import TRANSIENT, Failure, classify
from nas.plan import Resources
from nas.runner import WORKER_DEATHS, resource_options
from search_spaces.errors import InputError
from trials.checkpoint import Rung
from trials.final import FinalResult, FinalSpec, run_final
from trials.final_readings import ReadingSpec, read_model
from trials.latency import latency
from trials.reading import Reading
from trials.screen import screen
from trials.trial import TrialSpec

LOOK_SECONDS = 1.0  # how long Ctrl-C may have to wait

# What is heard of a final: that it was started (None), a reading, its result, or why there is none.
Heard = Rung | FinalResult | Failure | None
Said = TypeVar("Said")


def run_finals(specs: Mapping[str, FinalSpec], resources: Resources, hear: Callable[[str, Heard], None]) -> None:
    """Run all ``specs``, by name, in their order; ``hear`` is called in this thread, with the name.

    A final whose worker or node dies is tried again, from its last checkpoint, and so is one whose surroundings
    failed; its readings are heard once. Raises InputError when a worker does.
    """
    _run_all(_final, {name: spec.to_dict() for name, spec in specs.items()}, resources, hear)


def run_readings(
    specs: Mapping[str, ReadingSpec],
    resources: Resources,
    hear: Callable[[str, list[Reading] | Failure | None], None],
) -> None:
    """Take the readings of all ``specs``, by name; ``hear`` is called with None at the start of each, then with them.

    Retries and errors are as in `run_finals`.
    """
    _run_all(_readings, specs, resources, hear)


def run_screens(
    specs: Mapping[str, TrialSpec], resources: Resources, hear: Callable[[str, float | Failure | None], None]
) -> None:
    """Screen all ``specs``, by name; ``hear`` is called with None at the start of each, then with its loss.

    Retries and errors are as in `run_finals`.
    """
    _run_all(_screen, specs, resources, hear)


def run_timings(
    specs: Mapping[str, TrialSpec], resources: Resources, hear: Callable[[str, float | Failure | None], None]
) -> None:
    """The same for the latencies of ``specs``, in milliseconds of a generated token."""
    _run_all(_time, specs, resources, hear)


def _run_all(
    function: Callable[[Any], Iterator[Said]],
    specs: Mapping[str, Any],
    resources: Resources,
    hear: Callable[[str, Said | Failure | None], None],
) -> None:
    options: dict[str, Any] = {"num_returns": "streaming", "max_retries": WORKER_DEATHS}
    task = ray.remote(function).options(**options, retry_exceptions=list(TRANSIENT), **resource_options(resources))
    waiting, running = deque(specs), dict[Any, str]()
    while waiting or running:
        while waiting and len(running) < resources.workers:
            name = waiting.popleft()
            running[task.remote(specs[name])] = name
            hear(name, None)
        ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
        for stream in ready:
            heard = _next(stream)
            if heard is None:
                running.pop(stream)
            else:
                hear(running[stream], heard)


def _next(stream: Any) -> Any:
    """What comes next from a task, or why nothing does; None when it has ended."""
    try:
        return ray.get(next(stream))
    except StopIteration:
        return None
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        return classify(error.cause)
    except RayError as error:  # its worker or its node, each time
        return Failure(f"given up: {' '.join(str(error).split())[:300]}", retry=True)


def _screen(spec: TrialSpec) -> Iterator[float]:
    """What runs in a worker: the loss of one student before retraining."""
    yield screen(spec)


def _time(spec: TrialSpec) -> Iterator[float]:
    """What runs in a worker: the latency of one architecture."""
    yield latency(spec)


def _readings(spec: ReadingSpec) -> Iterator[list[Reading]]:
    """What runs in a worker: the readings of one model."""
    yield read_model(spec)


def _final(spec: dict[str, Any]) -> Iterator[Rung | FinalResult]:
    """What runs in a worker: one final; its readings as they come, then its result.

    The training has a thread of its own, since it calls back and a stream is asked. A second attempt says the
    same again, and Ray passes on what the first did not.
    """
    said: SimpleQueue[Rung | FinalResult | Exception] = SimpleQueue()

    def work() -> None:
        try:
            said.put(run_final(FinalSpec.from_dict(spec), lambda tokens, metrics: said.put(Rung(tokens, metrics))))
        except Exception as error:  # raised below, where Ray hears it
            said.put(error)

    Thread(target=work, name="final", daemon=True).start()
    while True:
        one = said.get()
        if isinstance(one, Exception):
            raise one
        yield one
        if isinstance(one, FinalResult):
            return
