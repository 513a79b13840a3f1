"""Measurements of architectures without retraining: losses in the screening, and latencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nas.planning.errors import AlikeFailures, Failure, NothingFeasibleError, alike, alike_by_surroundings
from nas.planning.plan import Plan
from nas.planning.specs import trial_spec
from nas.running.task_lists import run_screens, run_timings
from nas.running.workers import Workers
from nas.stages.events import ArchitectureMeasured, Listener, MeasuringStarted, Progressed, StepEnded
from nas.study.study import SearchStudy
from nas.study.trial_records import SCREENED, TIMED
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

Run = Callable[..., None]  # of specifications by name, the workers and an `OnResult`; for latencies `hardware` too
Wanted = Callable[[Mapping[str, float | None]], Sequence[Architecture]]
"""Which architectures to measure, as far as the values known so far, by key, decide it."""

RUNS: dict[str, Run] = {SCREENED: run_screens, TIMED: run_timings}
TIMED_ON = "timed_on"  # the attribute of a study that names the device of its latencies


def measure(
    quantity: str,
    plan: Plan,
    study: SearchStudy,
    workers: Workers,
    announce: Listener,
    wanted: Wanted,
    total: int,
) -> Mapping[str, float]:
    """Measure ``quantity``, a key of `RUNS`, for all ``wanted`` architectures, in the end ``total`` of them.

    The study keeps each value as it comes, and nothing is measured twice. An architecture that cannot be measured has
    no value; if a retry may help, the next run of the command tries it again. Returns all values, by the
    architecture's key.

    Raises InputError when a worker does, and when the surroundings of measurements fail again and again. Raises
    NothingFeasibleError when the first measurements all fail for one reason.
    """

    def missing() -> dict[str, Architecture]:
        known = study.kept(quantity)
        return {one.key: one for one in wanted(known) if one.key not in known}

    def on_result(key: str, result: float | Failure | None) -> None:
        if result is None:
            return
        problem = result.reason if isinstance(result, Failure) else ""
        if not (isinstance(result, Failure) and result.retry):
            study.keep(quantity, key, None if isinstance(result, Failure) else result)
        values = _values(study, quantity)
        announce(ArchitectureMeasured(quantity, key, values, problem))
        if isinstance(result, Failure):
            (surroundings if result.retry else own).failed(problem)
            _stop_if_hopeless(None if values else own, surroundings)
        else:
            surroundings.succeeded()

    left, asked = missing(), set[str]()
    own, surroundings = AlikeFailures(), AlikeFailures()
    if not left:
        return _values(study, quantity)
    run = partial(RUNS[TIMED], hardware=timed_on(study, workers)) if quantity == TIMED else RUNS[quantity]
    done = len(wanted(study.kept(quantity))) - len(left)
    if done:
        announce(Progressed(f"study {plan.study}: {done} of {total} architectures are {quantity} already"))
    announce(MeasuringStarted(quantity, total, done))
    while left:
        run({key: trial_spec(plan, one) for key, one in left.items()}, workers, on_result)
        asked |= left.keys()  # each is measured once in a run; what is still missing is left to the next run
        left = {key: one for key, one in missing().items() if key not in asked}
    announce(StepEnded())
    return _values(study, quantity)


def timed_on(study: SearchStudy, workers: Workers) -> str:
    """The kind of device on which the study's latencies are measured: that of its first one.

    Raises InputError when no worker has such a device.
    """
    found = workers.hardware
    device = str(study.recall(TIMED_ON) or (found[0] if found else ""))
    if found and device not in found:
        raise InputError(
            f"study {study.name}: its latencies were measured on {device}, and there is {', '.join(found)} here; times "
            "of different devices do not compare; run it where it was, or give another --study"
        )
    if device:
        study.remember(TIMED_ON, device)
    return device


def _stop_if_hopeless(own: AlikeFailures | None, surroundings: AlikeFailures) -> None:
    if own and own.reason:
        raise NothingFeasibleError(alike("measurements", own.reason))
    if surroundings.reason:
        raise InputError(alike_by_surroundings("measurements", surroundings.reason))


def _values(study: SearchStudy, quantity: str) -> Mapping[str, float]:
    return {key: value for key, value in study.kept(quantity).items() if value is not None}
