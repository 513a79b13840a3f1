"""Workers for tests of what drives them: one is always free, and none computes anything."""

from __future__ import annotations

from nas.planning.errors import NoWorkerError
from nas.running.slot import Slot


class FreeWorkers:
    """Workers of which one is always free, until there is a ``problem``."""

    problem = ""

    def __init__(self) -> None:
        self.wanted, self.lent = 0, list[Slot]()

    def want(self, tasks: int) -> None:
        self.wanted = tasks

    def has_free(self) -> bool:
        if self.problem:
            raise NoWorkerError(self.problem)
        return True

    def take(self, task: str) -> Slot:
        self.lent.append(Slot(task, task=task))
        return self.lent[-1]

    def give(self, slot: Slot) -> None:
        self.lent.remove(slot)
