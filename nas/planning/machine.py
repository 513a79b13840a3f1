"""The nodes that trials run on, the resources of one trial, and how many trials fit at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil

from search_spaces.errors import InputError

MEMORY_SHARE = 0.9  # of a node's memory that trials may fill


@dataclass(frozen=True)
class Node:
    """What one node has for trials. ``memory`` is in bytes."""

    cpus: int
    gpus: float = 0.0
    memory: int = 0

    def fits(self, cpus: int, gpus: float, memory: int) -> int:
        """How many trials with ``cpus``, ``gpus`` (at most 1) and ``memory`` bytes each the node can run at a time.

        The share of a GPU is not split over two. Trials on a GPU have their weights there, so the node's own memory
        does not limit them.
        """
        by_cpu = self.cpus // cpus
        if gpus:
            return min(by_cpu, int(self.gpus) * int(1 / gpus + 1e-9))
        return min(by_cpu, int(self.memory * MEMORY_SHARE // memory))


@dataclass(frozen=True)
class Machine:
    """One machine, or all nodes of a cluster."""

    nodes: tuple[Node, ...]

    @classmethod
    def local(cls) -> Machine:
        """This machine, without starting Ray."""
        import torch

        cpus = len(psutil.Process().cpu_affinity())
        return cls((Node(cpus, float(torch.cuda.device_count()), psutil.virtual_memory().available),))

    @property
    def gpus(self) -> float:
        """The GPUs of all nodes."""
        return sum(one.gpus for one in self.nodes)

    def fits(self, cpus: int, gpus: float, memory: int) -> int:
        """How many trials fit on all nodes together; see `Node.fits`."""
        return sum(one.fits(cpus, gpus, memory) for one in self.nodes)


@dataclass(frozen=True)
class Resources:
    """The number of ``workers``, which is the number of trials at a time, and the ``cpus`` and ``gpus`` of each."""

    workers: int
    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """The torch device type of trials: "cuda" or "cpu"."""
        return "cuda" if self.gpus else "cpu"


def resources_for(settings: Any, machine: Machine, trials: int, others: int, memory: int) -> Resources:
    """The resources of ``trials`` trials of ``memory`` bytes each, and of ``others`` shorter tasks, on ``machine``.

    Settings that are not given are derived. Every trial has a GPU if there is one. As many trials run at a time as fit,
    but no more than there are; on GPUs tasks of all kinds count, because none is faster on two. A trial has as many
    CPUs as leave room for the others: on a CPU the most with which as many fit as there are, on GPUs an equal share of
    the node with the fewest CPUs for a GPU.

    Raises InputError when no node can have a trial.
    """
    gpus = (1.0 if machine.gpus else 0.0) if settings.gpus_per_trial is None else settings.gpus_per_trial
    _check_gpus(gpus, machine)
    most = max((one.cpus for one in machine.nodes if one.gpus or not gpus), default=0)
    if settings.cpus_per_trial and settings.cpus_per_trial > most:
        which = "largest node with a GPU" if gpus else "largest node"
        raise InputError(f"--cpus-per-trial {settings.cpus_per_trial}: the {which} has {most}; give at most that")
    tasks = settings.workers or (max(trials, others) if gpus else trials)
    wanted = max(1, min(tasks, machine.fits(1, gpus, memory)))
    cpus = settings.cpus_per_trial or _cpus(machine, gpus, memory, wanted)
    return Resources(max(1, min(tasks, machine.fits(cpus, gpus, memory))), cpus, gpus)


def _check_gpus(gpus: float, machine: Machine) -> None:
    if gpus > 1:
        raise InputError(f"--gpus-per-trial {gpus:g}: a trial trains on one GPU; give 1, or a share of it such as 0.5")
    if gpus and not machine.gpus:
        raise InputError(f"--gpus-per-trial {gpus:g}: no node has a GPU; give 0, or leave it out, to use CPUs")


def _cpus(machine: Machine, gpus: float, memory: int, wanted: int) -> int:
    """The CPUs of a trial, so that ``wanted`` trials fit."""
    most = max((one.cpus for one in machine.nodes), default=1)
    if gpus:
        shares = [one.cpus // one.fits(1, gpus, memory) for one in machine.nodes if one.fits(1, gpus, memory)]
        most = min(shares, default=1) if wanted >= machine.fits(1, gpus, memory) else most
    enough = (count for count in range(most, 1, -1) if machine.fits(count, gpus, memory) >= wanted)
    return next(enough, 1)
