"""The listener that keeps the mirror of a search, and the way back from it at the start."""

from __future__ import annotations

from rich.console import Console

from nas.mirror.contents import scores_of
from nas.mirror.manifest import Manifest
from nas.mirror.restore import restore
from nas.mirror.store import Store
from nas.mirror.writer import MirrorWriter
from nas.planning.plan import Plan
from nas.stages.events import Event, Listener, Progressed, SearchConcluded, SearchPrepared, SearchStopped

IDLE_SECONDS = 60.0  # how long the end of a search waits for a mirror to which nothing goes over any more
STOPPED_SECONDS = 3.0  # and the end of one that was stopped, at most


class MirrorListener:
    """Fills the mirror ``store`` while a search runs. What is missing in the end, it says on ``console``.

    It has to be the last listener: the others write files that belong to the mirror.
    """

    def __init__(self, store: Store, console: Console) -> None:
        self.store, self.console = store, console
        self._found: Manifest | None = None
        self._own: Store | None = None
        self._writer: MirrorWriter | None = None

    def begin(self, plan: Plan, announce: Listener) -> None:
        """Bring back what this machine has not. Raises what `restore` raises."""
        self._own = self.store.inside(plan.study)
        self._found = restore(plan, self._own, lambda line: announce(Progressed(line)))

    def __call__(self, event: Event) -> None:
        if isinstance(event, SearchPrepared):
            assert self._own is not None, "begin comes before the search"
            scores = scores_of(event.plan.cache, event.teacher.preparation.importance_key)
            self._writer = MirrorWriter(event.plan, self._own, self._found, scores)
        elif self._writer is not None:
            if isinstance(event, SearchConcluded):
                self._close(self._writer, IDLE_SECONDS)
            elif isinstance(event, SearchStopped):
                self._close(self._writer, STOPPED_SECONDS, STOPPED_SECONDS)
            else:
                self._writer.wake()

    def _close(self, writer: MirrorWriter, idle: float, most: float = float("inf")) -> None:
        if missing := writer.close(idle, most):
            line = f"mirror {self.store.url}: {missing}; the same command brings them there"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
