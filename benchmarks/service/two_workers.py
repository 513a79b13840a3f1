"""Measures how much faster two workers are than one: the same trials of mini, each on one CPU core.

    python -m benchmarks.service.two_workers

Prepares the teacher, lets every worker load what trials need, and then runs the same trials on one worker and on two,
in turn. Prints the times between the first start and the last end, and the median of their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

from ray import cloudpickle

from nas.cluster.session import ray_session
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.planning.specs import trial_spec
from nas.running.jobs import Job, results_of
from nas.running.tasks import trial_task
from nas.running.workers import Workers, open_workers
from nas.stages.prepare import prepare_teacher

TOKENS = 4_096


def jobs_of(plan: Plan, name: str, trials: int) -> dict[str, Job]:
    """``trials`` trials in folders of their own, so that none finds the checkpoint of an earlier turn."""
    task, found = cloudpickle.dumps(trial_task), {}
    for number, one in enumerate(plan.target.feasible[:trials]):
        spec = {**trial_spec(plan, one).to_dict(), "directory": str(plan.folder / name / str(number))}
        found[f"{name} {number}"] = Job(task, spec, spec["cache"])
    return found


def seconds_of(plan: Plan, workers: Workers, name: str, trials: int, at_once: int) -> float:
    """Seconds that ``trials`` trials take on ``at_once`` workers."""
    started = time.perf_counter()
    for _ in results_of(workers, jobs_of(plan, name, trials), at_once):
        pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = {"model": "mini", "budget": "60%", "output": folder, "tokens_per_trial": str(TOKENS), "workers": "2"}
        flags |= {"cpus_per_trial": "1", "scheduler": "none", "device": "cpu", "calibration_samples": "64"}
        settings = load_settings(flags, None, {})
        target = resolve_target(settings)
        with ray_session(settings) as machine:
            plan = make_plan(settings, target, machine)
            with open_workers(plan.resources, folder, machine) as workers:
                prepare_teacher(plan, workers, lambda step: None)
                seconds_of(plan, workers, "warm", 2, 2)
                ratios = []
                for turn in range(given.turns):
                    one, two = (seconds_of(plan, workers, f"{turn}-{n}", given.trials, n) for n in (1, 2))
                    ratios.append(one / two)
                    print(
                        f"{given.trials} trials: {one:.1f} s on one worker, {two:.1f} s on two, {ratios[-1]:.2f}",
                        flush=True,
                    )
    print(f"two workers are {statistics.median(ratios):.2f} times as fast as one, median of {given.turns} turns")


if __name__ == "__main__":
    main()
