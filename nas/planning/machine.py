"""The resources for all trials, and the resources of one trial."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Machine:
    """The resources for trials, of one machine or of all nodes of a cluster.

    ``memory`` is in bytes. ``node_cpus`` is the number of CPUs of the smallest node.
    """

    cpus: int
    gpus: float
    memory: int
    node_cpus: int

    @classmethod
    def local(cls) -> Machine:
        """This machine, without starting Ray."""
        import torch

        cpus = len(psutil.Process().cpu_affinity())
        return cls(cpus, float(torch.cuda.device_count()), psutil.virtual_memory().available, cpus)


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
