"""How long until training starts: of a search, cold and warm, and of the first and the second trial of a worker.

    python -m benchmarks.startup --model mini --budget 60%

Runs `python -m nas.search` with the settings that are given, two trials on one worker, twice in one output folder:
with nothing in the cache, and as another study that finds everything there. Students are refitted and read on little
text, so that the time until a first loss is that of starting. Then a worker of its own, with the same cache: from its
start to the first loss of its first trial, and of a second trial of the same architecture.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray import cloudpickle

from nas.plan import Plan, make_plan, resolve_target
from nas.runner import architecture_spec
from nas.session import ray_session
from nas.settings import SearchSettings, load_settings
from nas.tasks import trial_task
from nas.workers import Workers, open_workers, work

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
    """Seconds from the start of a search to its first trial, and to the first loss of that."""
    command = [sys.executable, "-m", "nas.search", *flags, "--study", study]
    started, seconds = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if LINE.search(line):
                seconds.append(time.perf_counter() - started)
    if running.returncode or len(seconds) != 4:
        raise SystemExit(f"the search ended with {running.returncode} after {len(seconds)} of 4 readings")
    return seconds[0], seconds[1]


async def first_loss(plan: Plan, workers: Workers, folder: Path) -> float:
    """Seconds until a trial in ``folder`` says what its student is worth before retraining."""
    spec = {**architecture_spec(plan, plan.target.feasible[0]).to_dict(), "directory": str(folder)}
    started = time.perf_counter()
    async for _ in work(workers.pool, folder.name, cloudpickle.dumps(trial_task), spec):
        return time.perf_counter() - started
    raise AssertionError("a trial says what its student is worth")


def on_a_worker(settings: SearchSettings, folder: Path) -> tuple[float, float]:
    """Seconds that the first trial of a worker takes to its first loss, the worker's own start included; the second."""
    with ray_session(settings) as machine:
        plan = make_plan(settings, resolve_target(settings), machine)
        with open_workers(plan.resources) as workers:
            first, second = (asyncio.run(first_loss(plan, workers, folder / name)) for name in ("first", "second"))
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
        first, second = on_a_worker(load_settings(settings, None, {}), Path(folder))
        print(f"a worker's first trial: {first:.2f} s to its first loss; its second: {second:.2f} s", end=" ")
        print(f"({second / first:.2f})")


if __name__ == "__main__":
    main()
