"""Measures how the service behaves with thousands of trials: trials that do nothing, through the whole service.

    python -m benchmarks.service.growth
    python -m benchmarks.service.growth --trials 600

Prints, for every tenth of the trials, the time of a trial and of a proposal and the memory of the driver. The last
lines compare the last hundred trials with the second hundred, and give the time of a resume. The stage is the real one
(`nas.stages.try_candidates`): study, sampler, promotion, Tune, the display without a terminal, and MLflow in SQLite.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from rich.console import Console

from nas.display.display import Display
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.running.client import FINAL, LOSS, TOKENS
from nas.running.session import ray_session
from nas.running.tune_run import run_trials
from nas.running.workers import open_workers
from nas.stages import try_candidates as try_stage
from nas.stages.events import Announcer, Event, TrialChanged
from nas.stages.screen import Screened
from nas.stages.try_candidates import try_candidates
from nas.study.study import SearchStudy
from nas.tracking import messages
from nas.tracking.tracker import Tracker, tracking_uri

FIRST = 100  # trials after the start that the last hundred are compared with
SPACE = (
    "hidden: {min: 50%, step: 8}\nheads: {min: 12%, step: 1}\nmlp: {min: 12%, step: 16}\ndepth: {min: 25%, step: 1}\n"
)


def no_op(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A trial without work. It reports as often as a real one."""
    loss = 1.0 + zlib.crc32(str(spec["architecture"]).encode()) / 2**32
    for tokens in (0, *spec["recipe"]["rungs"]):
        yield {TOKENS: tokens, LOSS: loss}
    yield {FINAL: True, LOSS: loss, TOKENS: spec["recipe"]["tokens"]}


class Watch:
    """Notes when each trial ends, how long a proposal took, and the memory of this process."""

    def __init__(self, study: SearchStudy, tracker: Tracker) -> None:
        self.study, self.tracker = study, tracker
        self.ends: list[float] = []
        self.memory: list[int] = []
        self.asks: list[float] = []
        self._ask, study.ask = study.ask, self.timed_ask  # type: ignore[method-assign]

    def timed_ask(self) -> Any:
        started = time.perf_counter()
        found = self._ask()
        self.asks.append(time.perf_counter() - started)
        return found

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrialChanged):
            self.tracker.put(messages.TrialChanged(self.study.unique_id, event.record))
            if event.record.state != "RUNNING":
                self.ends.append(time.perf_counter())
                self.memory.append(psutil.Process().memory_info().rss)


def open_study(plan: Plan) -> SearchStudy:
    """The study of ``plan``, without a teacher."""
    target, sampler = plan.target, plan.settings.sampler
    return SearchStudy(plan.storage, plan.study, target.space, target.feasible, sampler=sampler, seed=0, identity={})


def show(watch: Watch, trials: int) -> None:
    """Print the growth, part by part."""
    part = max(FIRST, trials // 10)
    print("trials   ms a trial   ms a proposal   driver, MB")
    for end in range(part, trials + 1, part):
        each = (watch.ends[end - 1] - watch.ends[end - part]) / (part - 1)
        ask = statistics.median(watch.asks[end - part : end])
        print(f"{end:6}   {each * 1e3:10.1f}   {ask * 1e3:13.1f}   {watch.memory[end - 1] / 1e6:10.0f}")
    first, last = watch.ends[FIRST : 2 * FIRST], watch.ends[-FIRST:]
    ratio = (last[-1] - last[0]) / (first[-1] - first[0])
    grown = (watch.memory[-1] - watch.memory[2 * FIRST]) / (trials - 2 * FIRST)
    print(f"last {FIRST} trials: {ratio:.2f} times trials {FIRST} to {2 * FIRST}")
    print(f"a proposal: {statistics.median(watch.asks[-FIRST:]) * 1e3:.1f} ms over the last {FIRST}")
    print(f"memory: {grown / 1e3:.1f} KB a trial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5_000)
    parser.add_argument("--sampler", default="tpe")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        space.write_text(SPACE)
        flags = {"model": "mini", "budget": "60%", "tolerance": "0.3", "output": folder, "space": str(space)}
        limits = {"scheduler": "none", "trials": str(given.trials), "sampler": given.sampler, "finalists": "0"}
        settings = load_settings({**flags, **limits}, None, {})
        target = resolve_target(settings)
        print(f"{len(target.feasible):,} architectures, {given.trials:,} trials by {given.sampler}")
        with ray_session(settings) as machine, patch.object(try_stage, "run_trials", partial(run_trials, task=no_op)):
            plan = make_plan(settings, target, machine)
            plan.folder.mkdir(parents=True)
            study = open_study(plan)
            tracker = Tracker(tracking_uri(plan.output), "growth", plan.folder / "outbox", plan.output / "mlartifacts")
            watch, announce = Watch(study, tracker), Announcer()
            nobody: Any = None
            opened = open_workers(plan.resources, str(plan.output), machine)
            with open(os.devnull, "w") as nowhere, opened as workers:
                announce.listeners += [Display(Console(file=nowhere)), watch]
                try_candidates(Screened(0.0, plan, study, nobody, {}, ()), workers, announce)
        show(watch, given.trials)
        started = time.perf_counter()
        again = open_study(plan)
        again.requeue()
        again.records()
        again.ask()
        print(f"resume: {time.perf_counter() - started:.1f} s")
        print(f"messages that wait for MLflow: {tracker.close(0.0):,}")


if __name__ == "__main__":
    main()
