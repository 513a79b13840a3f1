"""What trials can run on, and what each of them gets of it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Machine:
    """What trials can run on: one machine or all nodes of a cluster. ``node_cpus`` is the smallest node's."""

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
    """How many trials run at a time, and what each of them gets."""

    workers: int
    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """Torch's name of the device that trials run on."""
        return "cuda" if self.gpus else "cpu"
