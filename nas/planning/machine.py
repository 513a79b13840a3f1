"""The nodes that trials run on, the resources of one trial, and how many trials fit at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psutil

from search_spaces.errors import InputError

MEMORY_SHARE = 0.9  # of a node's memory that trials may fill


@dataclass(frozen=True)
class Node:
    """What one node has for trials. ``memory`` is in bytes, ``kinds`` are Ray's names of its accelerators."""

    cpus: int
    gpus: float = 0.0
    memory: int = 0
    kinds: tuple[str, ...] = ()

    def fits(self, cpus: int, gpus: float, memory: int) -> int:
        """How many trials with ``cpus``, ``gpus`` (at most 1) and ``memory`` bytes each the node can run at a time.

        The share of a GPU is not split over two. Trials on a GPU have their weights there, so the node's own memory
        does not limit them.
        """
        by_cpu = self.cpus // cpus if cpus else self.cpus + 1_000
        if gpus:
            return min(by_cpu, int(self.gpus) * int(1 / gpus + 1e-9))
        return min(by_cpu, int(self.memory * MEMORY_SHARE // memory)) if memory else by_cpu


@dataclass(frozen=True)
class Machine:
    """One machine, or all ``nodes`` of a cluster that are up.

    ``coming`` are the types of nodes that an autoscaler can bring, each with how many of them there may be at a time.
    Nodes may join a machine that ``grows``, whether an autoscaler says so or not: any cluster.
    """

    nodes: tuple[Node, ...]
    coming: tuple[tuple[Node, int], ...] = ()
    grows: bool = False

    @classmethod
    def local(cls) -> Machine:
        """This machine, without starting Ray."""
        import torch

        cpus = len(psutil.Process().cpu_affinity())
        return cls((Node(cpus, float(torch.cuda.device_count()), psutil.virtual_memory().available),))

    @cached_property
    def possible(self) -> dict[Node, int]:
        """All nodes that there may be at a time, with the number of each. Nodes of a type that may come count once."""
        types = {(node.cpus, node.gpus) for node, _ in self.coming}
        found = Counter(one for one in self.nodes if (one.cpus, one.gpus) not in types)
        for node, most in self.coming:
            found[node] += most
        return dict(found)

    @property
    def gpus(self) -> float:
        """The GPUs of all nodes that there may be."""
        return sum(one.gpus * count for one, count in self.possible.items())

    def fits(self, cpus: int, gpus: float, memory: int) -> int:
        """How many trials fit on all nodes that there may be; see `Node.fits`."""
        return sum(one.fits(cpus, gpus, memory) * count for one, count in self.possible.items())

    def only(self, allowed: Callable[[Node], bool]) -> Machine:
        """The machine without the nodes that are not ``allowed``."""
        coming = tuple((one, most) for one, most in self.coming if allowed(one))
        return Machine(tuple(filter(allowed, self.nodes)), coming, self.grows)


@dataclass(frozen=True)
class Resources:
    """What trials need, and how many run at a time.

    ``workers`` is how many run at a time on the nodes that there are or may be; there may be fewer at first. Each has
    ``cpus``, ``gpus`` of the ``kind`` (Ray's name; empty for any), and ``memory`` bytes, which no node hands out but
    which are counted. ``given`` is True for a number of workers that the user gave.
    """

    workers: int
    cpus: int
    gpus: float
    memory: int = 0
    kind: str = ""
    given: bool = False

    @property
    def device(self) -> str:
        """The torch device type of trials: "cuda" or "cpu"."""
        return "cuda" if self.gpus else "cpu"

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options of an actor with these resources."""
        kind = {"accelerator_type": self.kind} if self.kind else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **kind}


def resources_for(settings: Any, machine: Machine, trials: int, others: int, memory: int) -> Resources:
    """The resources of ``trials`` trials of ``memory`` bytes each, and of ``others`` shorter tasks, on ``machine``.

    Settings that are not given are derived. Every trial has a GPU if there is one or one may come. As many trials run
    at a time as fit, but no more than there are; on GPUs tasks of all kinds count, because none is faster on two. A
    trial has as many CPUs as leave room for the others: on a CPU the most with which as many fit as there are, on GPUs
    an equal share of the node with the fewest CPUs for a GPU.

    Raises InputError for settings that contradict each other, and when no node can have a trial and none may join.
    """
    gpus, kind = _gpus(settings, machine), settings.accelerator_type or ""
    if kind:
        machine = machine.only(lambda node: kind in node.kinds)
    if not machine.grows:
        _check_place(settings, machine, gpus, kind)
    tasks = settings.workers or (max(trials, others) if gpus else trials)
    wanted = max(1, min(tasks, machine.fits(1, gpus, memory)))
    cpus = settings.cpus_per_trial or _cpus(machine, gpus, memory, wanted)
    fit = machine.fits(cpus, gpus, memory)
    workers = settings.workers if settings.workers and machine.grows else min(tasks, fit)
    return Resources(max(1, workers), cpus, gpus, memory, kind, given=settings.workers is not None)


def _gpus(settings: Any, machine: Machine) -> float:
    """The GPUs of a trial, 0 for a trial on CPUs."""
    device, given = settings.device, settings.gpus_per_trial
    if given is not None and given > 1:
        raise InputError(f"--gpus-per-trial {given:g}: a trial trains on one GPU; give 1, or a share of it such as 0.5")
    if device == "cpu" and (given or settings.accelerator_type):
        flag = f"--gpus-per-trial {given:g}" if given else f"--accelerator-type {settings.accelerator_type}"
        raise InputError(f"--device cpu: contradicts {flag}; leave one of them out")
    if given == 0 and (device == "cuda" or settings.accelerator_type):
        flag = "--device cuda" if device == "cuda" else f"--accelerator-type {settings.accelerator_type}"
        raise InputError(f"--gpus-per-trial 0: contradicts {flag}; leave one of them out")
    if given is not None:
        return float(given)
    if device == "auto" and not settings.accelerator_type:
        return 1.0 if machine.gpus else 0.0
    return 1.0 if device != "cpu" else 0.0


def _check_place(settings: Any, machine: Machine, gpus: float, kind: str) -> None:
    """Raise InputError when no node can have a trial."""
    if gpus and not machine.gpus:
        asked = f"--accelerator-type {kind}" if kind else "--device cuda"
        asked = f"--gpus-per-trial {gpus:g}" if settings.gpus_per_trial else asked
        what = f"no node has a GPU of kind {kind}" if kind else "no node has a GPU"
        raise InputError(f"{asked}: {what}; leave it out, to use CPUs")
    most = max((one.cpus for one in machine.nodes if one.gpus or not gpus), default=0)
    if settings.cpus_per_trial and settings.cpus_per_trial > most:
        which = "largest node with a GPU" if gpus else "largest node"
        raise InputError(f"--cpus-per-trial {settings.cpus_per_trial}: the {which} has {most}; give at most that")


def _cpus(machine: Machine, gpus: float, memory: int, wanted: int) -> int:
    """The CPUs of a trial, so that ``wanted`` trials fit."""
    most = max((one.cpus for one in machine.possible), default=1)
    if gpus:
        shares = [one.cpus // one.fits(1, gpus, memory) for one in machine.possible if one.fits(1, gpus, memory)]
        most = min(shares, default=1) if wanted >= machine.fits(1, gpus, memory) else most
    enough = (count for count in range(most, 1, -1) if machine.fits(count, gpus, memory) >= wanted)
    return next(enough, 1)
