"""Measures the time until training starts: of a search, cold and warm, and of a worker's first and second trial.

    python -m benchmarks.service.startup --model mini --budget 60%

Runs `python -m nas.search` with the given settings and two trials on one worker, twice in one output folder: first with
an empty cache, then as another study that finds everything in the cache. Refit and evaluation use little text, so that
the time until the first loss is mostly start-up.

Then it starts a worker with the same cache, and measures the time until its first trial has loaded everything from
which it prunes its student, and the same for a second trial of the same architecture. With another worker it measures
the times until the first losses of two such trials.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ray import cloudpickle

from nas.cluster.session import ray_session
from nas.planning.machine import Machine
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.planning.specs import trial_spec
from nas.running.jobs import Job, Started, Task, results_of
from nas.running.tasks import trial_task
from nas.running.workers import Workers, open_workers
from trials.preparation import shared
from trials.trial import TrialSpec

SETTINGS = {
    "trials": "2",
    "workers": "1",
    "sampler": "random",
    "scheduler": "none",
    "finalists": "0",
    "tokens_per_trial": "1024",
    "calibration_samples": "8",
    "validation_tokens": "2048",
}
LINE = re.compile(r"trial \d+ .*(: started|val loss \S+ before retraining)")


def search(flags: list[str], study: str) -> tuple[float, float]:
    """Seconds from the start of a search to its first trial, and to the first loss of that trial."""
    command = [sys.executable, "-m", "nas.search", *flags, "--study", study]
    started, seconds = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if LINE.search(line):
                seconds.append(time.perf_counter() - started)
    if running.returncode or len(seconds) != 4:
        raise SystemExit(f"the search ended with exit code {running.returncode} after {len(seconds)} of 4 log lines")
    return seconds[0], seconds[1]


def ready(spec: dict[str, Any]) -> Iterator[str]:
    """A task that loads what a trial needs before it prunes its student. A warm worker has it in memory already."""
    trial = TrialSpec.from_dict(spec)
    yield shared(trial.recipe, trial.cache, trial.device).fingerprint


def seconds_to_result(plan: Plan, workers: Workers, task: Task, folder: Path) -> float:
    """Seconds until the first result of ``task``, for the specification of a trial in ``folder``."""
    spec = {**trial_spec(plan, plan.target.feasible[0]).to_dict(), "directory": str(folder)}
    started = time.perf_counter()
    with closing(results_of(workers, {folder.name: Job(cloudpickle.dumps(task), spec)})) as happened:
        next(one for _, one in happened if not isinstance(one, Started))
    return time.perf_counter() - started


def on_a_worker(plan: Plan, task: Task, folder: Path) -> tuple[float, float]:
    """Seconds to the first result of ``task`` in a new worker, including its start, and again in the same worker."""
    with open_workers(plan.resources, str(plan.output), Machine(())) as workers:
        first, second = (seconds_to_result(plan, workers, task, folder / name) for name in ("first", "second"))
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "corpus", "budget"):
        parser.add_argument(f"--{name}", default={"model": "mini", "budget": "60%"}.get(name))
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        settings = {**given, **SETTINGS, "output": folder}
        flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
        for study in ("cold", "warm"):
            trial, loss = search(flags, study)
            print(f"{study:<6}{trial:7.1f} s to the first trial, {loss:.1f} s to its first loss", flush=True)
        loaded = load_settings(settings, None, {})
        with ray_session(loaded) as machine:
            plan = make_plan(loaded, resolve_target(loaded), machine)
            for what, task in (("can cut its student", ready), ("has its first loss", trial_task)):
                first, second = on_a_worker(plan, task, Path(folder))
                times = f"{first:.2f} s, the second after {second:.2f} s ({second / first:.2f})"
                print(f"a worker's first trial {what} after {times}", flush=True)


if __name__ == "__main__":
    main()
