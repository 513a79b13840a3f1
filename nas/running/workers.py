"""The workers of a search. The driver starts them, lends each to one task, replaces dead ones, and gives them back.

All of it happens in `Workers.poll`, which the driver calls while it waits for results. No thread and no other process
holds any of this state, and Ray ends the workers of a driver that dies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from nas.cluster.nodes import machine_now, unplaceable
from nas.planning.errors import TRIES, NoWorkerError
from nas.planning.machine import Machine, Node, Resources
from nas.running.slot import START_HELP, Slot, cannot_import, end, is_done, kill_process, problem_of
from nas.running.worker import PULSE, About, Worker

log = logging.getLogger(__name__)

LONGEST_PAUSE = 600.0  # seconds between two attempts to start a worker that has failed many times
LOOK = 10.0  # seconds between two looks at the nodes of the cluster
BEAT = 30.0  # seconds between two questions whether a worker is alive
HUNG_AFTER = 600.0  # seconds without an answer or without processor time, after which a worker is replaced
IDLE_SHARE = 0.02  # of a processor; an idle worker uses 0.005 to 0.01, and one that trains on a GPU more than 0.1
PATIENCE = 600.0  # seconds in which a node may join that can have a worker
KEEP = 60.0  # seconds that a worker of a cluster is kept, or waited for, when there are fewer tasks than workers
SERIAL = count(1)  # of the workers of this process: the names of actors are their own
STEP = 0.2  # seconds; the longest wait for results without a look at the workers


@dataclass
class Pace:
    """How patient `Workers` are, in seconds; see the constants of this file.

    A worker is asked at least four times before it counts as hung. ``idle`` is a share of a processor.
    """

    look: float = LOOK
    beat: float = BEAT
    hung_after: float = HUNG_AFTER
    patience: float = PATIENCE
    keep: float = KEEP
    idle: float = IDLE_SHARE

    def __post_init__(self) -> None:
        self.beat = min(self.beat, self.hung_after / 4)

    def pause(self, failures: int) -> float:
        """Before a worker that could not be started ``failures`` times is tried again."""
        return float(min(4 ** (failures - 1), LONGEST_PAUSE))


@dataclass
class Workers:
    """The workers of a search: as many as there are tasks, as far as the nodes of the cluster have room.

    A worker that no node has room for waits in Ray, where an autoscaler sees it. All workers of a search compute with
    one kind of arithmetic, that of the first one: another one is ended, and its node gets none any more.
    """

    resources: Resources
    output: str = "/"
    coming: tuple[tuple[Node, int], ...] = ()
    grows: bool = False
    pace: Pace = field(default_factory=Pace)
    worker: type[Worker] = Worker
    arithmetic: str = ""

    def __post_init__(self) -> None:
        self._slots: list[Slot] = []
        self._wanted = 0
        self._refused: dict[str, str] = {}  # nodes whose workers are refused, with the reason
        self._unplaced: float | None = None  # since when no node can have a worker
        self._looked = self._polled = -inf
        self._limit = max(1, self.resources.workers)

    @property
    def count(self) -> int:
        """The number of workers that the search has, or waits for."""
        return max(1, len(self._slots))

    @property
    def ready(self) -> int:
        """The number of workers that have started."""
        return sum(slot.ready for slot in self._slots)

    @property
    def hardware(self) -> list[str]:
        """The kinds of devices of the workers that have started, each once."""
        return list(dict.fromkeys(slot.about.hardware for slot in self._slots if slot.about))

    @property
    def problem(self) -> str:
        """Why there is no worker, if none can be had; otherwise an empty string."""
        if not self._slots or not all(slot.problem for slot in self._slots):
            return ""
        return "; ".join(dict.fromkeys(slot.problem for slot in self._slots))

    def want(self, tasks: int) -> None:
        """Say that ``tasks`` tasks are running or waiting. There are no more workers than tasks, but at least one."""
        self._wanted = tasks
        self.poll()

    def has_free(self) -> bool:
        """Whether a worker can be lent now. Raises NoWorkerError when none can be had any more."""
        self.poll()
        if self.problem:
            raise NoWorkerError(self.problem)
        return any(slot.free for slot in self._slots)

    def take(self, task: str, hardware: str = "") -> Slot | None:
        """Lend a free worker to ``task``; on ``hardware`` only, if given. None if there is none at the moment."""
        for slot in self._slots:
            if slot.free and slot.about and (not hardware or slot.about.hardware == hardware):
                slot.task, slot.since, slot.moved, slot.hung = task, time.monotonic(), time.monotonic(), ""
                return slot
        return None

    def give(self, slot: Slot) -> None:
        """Take the worker of ``slot`` back. Its task ends where it is."""
        if slot not in self._slots or not slot.task:
            return
        slot.task = ""
        if slot.worker is not None:
            slot.answer = slot.worker.free.remote()

    def wait(self, calls: Sequence[Any], seconds: float = STEP) -> list[Any]:
        """Those of ``calls``, results of remote methods, that are done; waits up to ``seconds`` for the first."""
        awaited = [*calls, *(slot.answer for slot in self._slots if slot.answer is not None)]
        if awaited:
            ray.wait(awaited, num_returns=1, timeout=seconds)
        else:
            time.sleep(seconds)
        self.poll()
        return ray.wait(list(calls), num_returns=len(calls), timeout=0)[0] if calls else []

    def poll(self) -> None:
        """Hear what workers answer, start and end workers, and look for those that hang."""
        now = time.monotonic()
        if now - self._polled > 3 * self.pace.beat:  # the driver did something else, and asked for no pulse
            for slot in self._slots:
                slot.moved = now
        self._polled = now
        for slot in list(self._slots):
            if slot.answer is not None and is_done(slot.answer):
                self._hear(slot)
            if slot.worker is not None:
                self._feel_pulse(slot, now)
            if slot.worker is None and now >= slot.resume:
                self._start(slot)
        if now - self._looked >= self.pace.look:
            self._looked = now
            self._look(now)
        self._resize(now)

    def close(self) -> None:
        """End all workers."""
        for slot in self._slots:
            end(slot)
        self._slots.clear()

    def _start(self, slot: Slot) -> None:
        slot.name, slot.about, slot.pulse = f"worker {next(SERIAL)}", None, None
        slot.since = slot.moved = time.monotonic()
        slot.beat = slot.seconds = 0.0
        without = {"label_selector": {"ray.io/node-id": f"!in({','.join(self._refused)})"}} if self._refused else {}
        made = ray.remote(concurrency_groups={PULSE: 1})(self.worker)
        slot.worker = made.options(name=slot.name, **self.resources.options, **without).remote(
            self.resources.device, self.output
        )
        slot.answer = slot.worker.free.remote()

    def _hear(self, slot: Slot) -> None:
        answer, slot.answer = slot.answer, None
        try:
            about: About = ray.get(answer)
        except RayError as error:
            self._failed(slot, error)
            return
        slot.about, slot.failures, slot.problem = about, 0, ""
        slot.since = slot.moved = time.monotonic()
        self.arithmetic = self.arithmetic or about.arithmetic
        if reason := self._reason_against(about):
            log.warning("node %s gets no workers: %s", about.address, reason)
            self._refused[about.node] = reason
            self._remove(slot)

    def _reason_against(self, about: About) -> str:
        if not about.sees:
            shared = "on a cluster, give a folder that all nodes share, such as an NFS mount"
            return f"it does not see --output {self.output}; {shared}"
        if about.arithmetic != self.arithmetic:
            return f"it computes in {about.arithmetic}, and this search in {self.arithmetic}; losses would differ"
        return ""

    def _failed(self, slot: Slot, error: RayError) -> None:
        self._cannot_start(slot, problem_of(error, self.count), again=not cannot_import(error))

    def _cannot_start(self, slot: Slot, problem: str, again: bool) -> None:
        slot.failures += 1
        if not again or slot.failures >= TRIES:
            self._miss(slot, problem)
        end(slot)
        slot.resume = time.monotonic() + self.pace.pause(slot.failures)

    def _miss(self, slot: Slot, problem: str) -> None:
        left = sum(not one.problem for one in self._slots if one is not slot)
        if left and problem != slot.problem:
            log.warning("%s (the search goes on with %s of %s workers)", problem, left, len(self._slots))
        slot.problem = problem

    def _feel_pulse(self, slot: Slot, now: float) -> None:
        """End the worker of ``slot`` if it has neither answered nor used its processor for too long.

        A worker that has never answered waits for a place, which is not its fault.
        """
        if slot.pulse is not None and is_done(slot.pulse):
            self._note_pulse(slot, now)
        if slot.pulse is None and now - slot.beat >= self.pace.beat:
            slot.pulse, slot.beat = slot.worker.pulse.remote(), now
        waits_for_work = not slot.task and slot.answer is None
        waits_for_place = not slot.ready and not slot.seconds
        if waits_for_work or waits_for_place:
            slot.moved = now
        elif now - slot.moved >= self.pace.hung_after:
            self._end_hung(slot, now)

    def _end_hung(self, slot: Slot, now: float) -> None:
        hung = f"no answer and no work for {self.pace.hung_after:g} s"
        log.warning("%s was ended, because it hung: %s", slot.name, hung)
        if slot.ready:
            slot.hung = f"it hung: {hung}"
            kill_process(slot)
            end(slot)
            slot.resume = now
        else:
            self._cannot_start(slot, f"a worker hangs while it starts ({hung}); {START_HELP}", again=True)

    def _note_pulse(self, slot: Slot, now: float) -> None:
        pulse, slot.pulse = slot.pulse, None
        try:
            seconds = ray.get(pulse)
        except RayError:  # it has died; whoever has the worker, gives it back or waits for its start is told
            if slot.free:
                slot.answer = slot.worker.free.remote()
            return
        if seconds - slot.seconds > self.pace.idle * (now - slot.moved):
            slot.seconds, slot.moved = seconds, now

    def _look(self, now: float) -> None:
        """Find how many workers the nodes can have, and whether any node can have one."""
        machine, needed = machine_now(self.coming, self._refused), self.resources
        fit = machine.fits(needed.cpus, needed.gpus, needed.memory)
        more = int(self.grows and not self.coming)  # a worker without a place is what an unknown autoscaler sees
        self._limit = max(1, needed.workers if needed.given else fit + more)
        self._check_place(machine, now)

    def _check_place(self, machine: Machine, now: float) -> None:
        problem = unplaceable(self.resources.options, machine.possible)
        if self._refused and not machine.nodes:
            for slot in self._slots:
                slot.problem = next(iter(self._refused.values()))
        elif not problem or self.ready:
            self._unplaced = None
        elif self._unplaced is None:
            self._unplaced = now
            log.warning("%s; the search waits for such a node, for %g s", problem, self.pace.patience)
        elif now - self._unplaced >= self.pace.patience:
            for slot in self._slots:
                slot.problem = (
                    f"{problem}; give at most what a node has, or add such a node; the same command continues"
                )

    def _resize(self, now: float) -> None:
        """Start workers for tasks that have none, and end those that no task needs."""
        enough = max(1, min(self._wanted, self._limit))
        while len(self._slots) < enough:
            self._slots.append(slot := Slot())
            self._start(slot)
        idle = [one for one in self._slots if now - one.since >= self.pace.keep and not one.problem]
        unneeded = [one for one in idle if not one.ready] + [one for one in idle if one.free]
        for slot in unneeded[: max(0, len(self._slots) - enough)]:
            self._remove(slot)

    def _remove(self, slot: Slot) -> None:
        end(slot)
        self._slots.remove(slot)


@contextmanager
def open_workers(
    resources: Resources, output: str, machine: Machine, pace: Pace | None = None, kind: type[Worker] = Worker
) -> Iterator[Workers]:
    """The workers of a search, without waiting for them. They end with the block. Ray must be connected.

    ``machine`` is what they run on. As many as its nodes have room for start now. Those of a machine that does not grow
    stay until the end. ``kind`` replaces the real worker in benchmarks.
    ``output`` is the folder of all results, which is made.
    """
    Path(output).mkdir(parents=True, exist_ok=True)
    pace = pace or Pace()
    pace = pace if machine.grows else replace(pace, keep=inf)
    workers = Workers(resources, output, machine.coming, machine.grows, pace, kind)
    up = replace(machine, coming=()).fits(resources.cpus, resources.gpus, resources.memory)
    workers.want(max(1, min(up, resources.workers)))
    try:
        yield workers
    finally:
        workers.close()
