"""Measures the overhead of the service per trial: trials that do nothing, in the service and on bare Ray actors.

    python -m benchmarks.service.overhead

Prints milliseconds per trial as medians over repetitions: on reused bare actors, in the service (study, searcher,
scheduler, Tune with actor reuse, tracking), and the difference. Both are measured in one run. The start-up of Ray is
not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator
from typing import Any

import ray

from nas.cluster.session import ray_session
from nas.planning.machine import Machine
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.running.client import FINAL, LOSS, TOKENS
from nas.running.tune_run import run_trials
from nas.running.workers import open_workers
from nas.study.study import SearchStudy
from nas.tracking.messages import TrialChanged
from nas.tracking.tracker import Tracker, tracking_uri

TRIALS, REPETITIONS, RUNGS = 24, 3, 4


def no_op(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A trial without work that reports as often as a real one."""
    loss = 1.0 + zlib.crc32(str(spec["architecture"]).encode()) / 2**32
    for tokens in range(RUNGS):
        yield {TOKENS: tokens, LOSS: loss}
    yield {FINAL: True, LOSS: loss, TOKENS: RUNGS}


class Actor:
    """A worker without any framework around it."""

    def run(self, number: int) -> list[float]:
        """As many numbers as a trial reports."""
        return [1.0 + number / 1000] * (RUNGS + 1)


def bare(workers: int) -> float:
    """Seconds per call for `TRIALS` calls on ``workers`` actors that have already started."""
    actors = [ray.remote(Actor).options(num_cpus=1).remote() for _ in range(workers)]
    ray.get([actor.run.remote(0) for actor in actors])
    started = time.perf_counter()
    waiting = {actors[index % workers].run.remote(index): None for index in range(TRIALS)}
    ray.get(list(waiting))
    seconds = (time.perf_counter() - started) / TRIALS
    for actor in actors:
        ray.kill(actor)
    return seconds


def service(plan: Plan, name: str) -> float:
    """Seconds per trial for `TRIALS` trials, from the end of the first to the end of the last.

    The start of the workers is not counted, because they have started when the first trial ends.
    """
    target = plan.target
    plan.folder.mkdir(parents=True, exist_ok=True)
    study = SearchStudy(plan.storage, name, target.space, target.feasible, sampler="tpe", seed=0, identity={})
    tracker = Tracker(tracking_uri(plan.output), "overhead", plan.folder / "outbox", plan.output / "mlartifacts")

    def on_change(number: int) -> None:
        tracker.put(TrialChanged(name, study.record(number)))

    with open_workers(plan.resources, str(plan.output), Machine(())) as workers:
        run_trials(plan, study, workers, on_change, no_op)
    tracker.close()
    ends = sorted(record.ended for record in study.records() if record.ended is not None)
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = {"model": "mini", "budget": "60%", "output": folder, "scheduler": "none", "trials": str(TRIALS)}
        settings = load_settings(flags, None, {})
        target = resolve_target(settings)
        with ray_session(settings) as machine:
            plan = make_plan(settings, target, machine)
            workers = plan.resources.workers
            rows = [(bare(workers), service(plan, f"repetition-{index}")) for index in range(REPETITIONS)]
    on_actors, on_service = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"{TRIALS} trials without work, {workers} workers, median of {REPETITIONS} repetitions")
    print(f"bare Ray actors, reused   {on_actors * 1000:8.1f} ms a trial")
    print(f"the service               {on_service * 1000:8.1f} ms a trial")
    print(f"difference                {(on_service - on_actors) * 1000:8.1f} ms a trial")


if __name__ == "__main__":
    main()
