"""A search from its plan to exported winners: five stages, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from nas.choosing.outcome import Outcome
from nas.driver.in_database import only_driver_of
from nas.driver.in_folder import only_driver
from nas.mirror.listener import MirrorListener
from nas.planning.disk_space import check_disk_space, disk_space
from nas.planning.errors import full_disk_named
from nas.planning.plan import Plan
from nas.running.workers import Workers
from nas.stages.conclude import conclude
from nas.stages.events import Listener, Progressed, SearchStopped
from nas.stages.finish import finish
from nas.stages.keep_facts import add_seconds, timed
from nas.stages.prepare import prepare
from nas.stages.screen import screen
from nas.stages.try_candidates import try_candidates
from nas.study.database import SQLITE, faults_named


def run_search(plan: Plan, workers: Workers, announce: Listener, mirror: MirrorListener | None = None) -> list[Outcome]:
    """Run the search ``plan``, or continue it, and return the outcome of every budget.

    Each stage takes the frozen value of the stage before and returns the next one. ``announce`` receives every event,
    see `nas.stages.events`; the last one is SearchConcluded or SearchStopped. What this machine has not of the search
    comes from the ``mirror`` first.

    Raises InputError for wrong inputs, and NothingFeasibleError when a budget has no complete trial; the winners of the
    other budgets are exported before.
    """

    def told(text: str) -> None:
        announce(Progressed(text))

    alone = only_driver(plan.folder, plan.study, told)
    database = Path(plan.storage.removeprefix(SQLITE)).parent if plan.storage.startswith(SQLITE) else plan.output
    kept = "what is finished is kept, and the same command continues"
    full = full_disk_named(plan.output, database, after=f"this search writes {disk_space(plan)}; {kept}")
    with full, faults_named(plan.storage), alone, _stopped(announce):
        if not plan.settings.force:
            check_disk_space(plan)
        if mirror:
            mirror.begin(plan, announce)
        prepared = prepare(plan, workers, announce)
        study = prepared.study
        add_seconds(study, "prepare", prepared.started)
        with only_driver_of(study, plan.study, told) if plan.settings.storage else nullcontext():
            if plan.settings.storage:
                study.read_anew()
            with timed(study, "screen"):
                screened = screen(prepared, workers, announce)
            with timed(study, "try"):
                tried = try_candidates(screened, workers, announce)
            with timed(study, "finish"):
                finished = finish(tried, workers, announce)
            return conclude(finished, workers, announce)


@contextmanager
def _stopped(announce: Listener) -> Iterator[None]:
    """Announce that the search has stopped when an error ends it."""
    try:
        yield
    except BaseException as error:
        announce(SearchStopped(interrupted=isinstance(error, KeyboardInterrupt)))
        raise
