"""A search on a machine whose memory is taken by a neighbour, as `/proc/meminfo` tells it. A program for test_memory.

    python short_of_memory.py MEMINFO TEACHER FOLDER WORKERS UNTIL

MEMINFO is a file that is mounted over /proc/meminfo, so that the memory monitor of Ray and psutil read it. The memory
is taken when the first trial has begun. It is given back when processes have died UNTIL times. Prints one JSON object:
the error, if any, and the trials.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from small_search import arguments, write_text

from nas.cluster.session import ray_session
from nas.planning.plan import make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.running import jobs, tune_run
from nas.running.client import FINAL, LOSS, TOKENS
from nas.running.tune_search import StudySearcher
from nas.running.workers import Workers, open_workers
from nas.study.study import SearchStudy
from search_spaces.errors import InputError

TOTAL = 2**21  # kB; less than a container may have, so that Ray does not look at its control group
KNOWN = ("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapTotal", "SwapFree", "Shmem", "SReclaimable")
QUICKLY = (0.5, 0.5, 0.5)


def tell(meminfo: Path, free: int) -> None:
    """Write that ``free`` per cent of the memory are free. Whoever reads it meanwhile sees a whole file."""
    values = dict.fromkeys(KNOWN, 0) | {"MemTotal": TOTAL, "MemFree": TOTAL * free // 100}
    values["MemAvailable"] = values["MemFree"]
    text = "".join(f"{name + ':':16}{value:12} kB\n" for name, value in values.items())
    with open(meminfo, "r+b") as file:
        os.pwrite(file.fileno(), text.encode(), 0)


def trial(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {TOKENS: 0, LOSS: 5.0}
    yield {FINAL: True, TOKENS: 4096, LOSS: 4.0}


def main(meminfo: Path, teacher: str, folder: Path, count: int, until: str) -> dict[str, Any]:
    """See the head of this file."""
    tell(meminfo, 80)
    changes = {"trials": 3, "sampler": "random", "scheduler": "none", "workers": count}
    flags = arguments(Path(teacher), write_text(folder), folder / "out", "hungry", **changes)
    settings, _, _ = parse_arguments(flags)
    target = resolve_target(settings)
    tune_run.PAUSES = jobs.PAUSES = QUICKLY
    deaths: list[int] = []

    def counted(kind: type, name: str) -> None:
        """Count the calls of a method. The neighbour gives the memory back at the call number ``until``."""
        method = getattr(kind, name)

        def counting(*given: Any) -> None:
            deaths.append(len(deaths))
            if str(len(deaths)) == until:
                tell(meminfo, 80)
            method(*given)

        setattr(kind, name, counting)

    def on_change(number: int) -> None:
        if not deaths:
            tell(meminfo, 2)

    counted(StudySearcher, "_failed_try")  # a worker or a process of Tune died with a trial
    counted(Workers, "_failed")  # a worker could not start
    # Ray would take the use of the whole container from the total of this file. On a busy one, nothing would be left.
    ray.init = partial(ray.init, _memory=2**30)
    with ray_session(settings) as machine:
        plan = make_plan(settings, target, machine)
        plan.folder.mkdir(parents=True)
        space, feasible = target.space, target.feasible
        study = SearchStudy(plan.storage, "hungry", space, feasible, sampler="random", seed=0, identity={})
        error = ""
        try:
            with open_workers(plan.resources, str(plan.output), machine) as opened:
                tune_run.run_trials(plan, study, opened, on_change, trial)
        except InputError as wrong:
            error = str(wrong)
        trials = [(one.state, one.architecture.key, one.reason) for one in study.records()]
        return {"error": error, "trials": trials, "finished": study.finished(), "again": study.requeue(failed=True)}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    meminfo, teacher, folder, count, until = sys.argv[1:]
    print(json.dumps(main(Path(meminfo), teacher, Path(folder), int(count), until)))
