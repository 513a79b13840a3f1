"""Measures how the service behaves with thousands of trials: trials that do nothing, through the whole service.

    python -m benchmarks.service.growth
    python -m benchmarks.service.growth --trials 600
    python -m benchmarks.service.growth --trials 1280 --slots 64 --nodes 4 --seconds 120 --sampler random

The last one runs on a cluster of Ray nodes on this machine, with so many workers that import nothing. Each trial takes
``--seconds``, in which it sleeps. The floor is the time of these trials on that many slots without any service, as on
Ray Tune's own page about its scalability.

Prints, for every tenth of the trials, the time of a trial and of a proposal and the memory of the driver. The last
lines compare the last hundred trials with the second hundred, and give the time of a resume. The stage is the real one
(`nas.stages.try_candidates`): study, sampler, promotion, Tune, the display without a terminal, and MLflow in SQLite.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from rich.console import Console

from nas.cluster.session import ray_session
from nas.display.display import Display
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.running.client import FINAL, LOSS, TOKENS
from nas.running.tune_run import run_trials
from nas.running.worker import About, Worker
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


class Idle(Worker):
    """A worker that imports nothing."""

    def free(self) -> About:
        if self._results is not None:
            self._results.close()
        self._results = None
        return About(ray.get_runtime_context().get_node_id(), "", os.getpid(), "none", "none", sees=True)


def sleeping(seconds: float, spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A trial that sleeps before its last result."""
    *rungs, last = no_op(spec)
    yield from rungs
    time.sleep(seconds)
    yield last


def no_op(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A trial without work. It reports as often as a real one."""
    loss = 1.0 + zlib.crc32(str(spec["architecture"]).encode()) / 2**32
    for tokens in (0, *spec["recipe"]["rungs"]):
        yield {TOKENS: tokens, LOSS: loss}
    yield {FINAL: True, LOSS: loss, TOKENS: spec["recipe"]["tokens"]}


class Watch:
    """Notes when each trial ends, how long a proposal took, and the memory of this process."""

    def __init__(self, study: SearchStudy, tracker: Tracker) -> None:
        self.study, self.tracker, self.name = study, tracker, study.unique_id
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
            self.tracker.put(messages.TrialChanged(self.name, event.record))
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


@contextmanager
def cluster_of(nodes: int, slots: int, folder: str) -> Iterator[str]:
    """The address of a cluster of ``nodes`` on this machine with ``slots`` CPUs in all; empty for no slots."""
    if not slots:
        yield ""
        return
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}  # on loopback, for as long as this takes
    options = {"num_cpus": slots // nodes, "object_store_memory": 80 * 2**20, "dashboard_agent_listen_port": 0}
    made = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    for _ in range(nodes - 1):
        made.add_node(**options)
    made.wait_for_nodes()
    yield made.address
    made.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5_000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--slots", type=int, default=0, help="workers on a cluster of nodes on this machine")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.0, help="of each trial")
    given = parser.parse_args()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with tempfile.TemporaryDirectory(prefix="ray") as folder, cluster_of(given.nodes, given.slots, folder) as address:
        space = Path(folder) / "space.yaml"
        space.write_text(SPACE)
        flags = {"model": "mini", "budget": "60%", "tolerance": "0.3", "output": folder, "space": str(space)}
        limits = {"scheduler": "none", "trials": str(given.trials), "sampler": given.sampler, "finalists": "0"}
        limits |= {"address": address, "workers": str(given.slots), "cpus_per_trial": "1"} if address else {}
        settings = load_settings({**flags, **limits}, None, {})
        target = resolve_target(settings)
        print(f"{len(target.feasible):,} architectures, {given.trials:,} trials by {given.sampler}")
        task = partial(run_trials, task=partial(sleeping, given.seconds) if given.seconds else no_op)
        with ray_session(settings) as machine, patch.object(try_stage, "run_trials", task):
            plan = make_plan(settings, target, machine)
            plan.folder.mkdir(parents=True)
            study = open_study(plan)
            tracker = Tracker(tracking_uri(plan.output), "growth", plan.folder / "outbox", plan.output / "mlartifacts")
            watch, announce = Watch(study, tracker), Announcer()
            nobody: Any = None
            opened = open_workers(plan.resources, str(plan.output), machine, kind=Idle)
            with open(os.devnull, "w") as nowhere, opened as workers:
                announce.listeners += [Display(Console(file=nowhere)), watch]
                try_candidates(Screened(0.0, plan, study, nobody, {}, ()), workers, announce)
        show(watch, given.trials)
        if given.slots:
            floor = given.seconds * (given.trials - given.slots) / given.slots
            took = watch.ends[-1] - watch.ends[given.slots - 1]
            print(
                f"from the end of trial {given.slots}: {took:.0f} s; {took / floor:.3f} of the floor of {floor:.0f} s"
            )
        started = time.perf_counter()
        again = open_study(plan)
        again.requeue()
        again.records()
        again.ask()
        print(f"resume: {time.perf_counter() - started:.1f} s")
        print(f"messages that wait for MLflow: {tracker.close(0.0):,}")


if __name__ == "__main__":
    main()
