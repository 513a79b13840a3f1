"""A search from its plan to exported winners: five stages, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from nas.choosing.outcome import Outcome
from nas.mirror.listener import MirrorListener
from nas.planning.plan import Plan
from nas.running.workers import Workers
from nas.stages.conclude import conclude
from nas.stages.events import Listener, SearchStopped
from nas.stages.finish import finish
from nas.stages.keep_facts import add_seconds, timed
from nas.stages.prepare import prepare
from nas.stages.screen import screen
from nas.stages.try_candidates import try_candidates
from search_spaces.errors import InputError


def run_search(plan: Plan, workers: Workers, announce: Listener, mirror: MirrorListener | None = None) -> list[Outcome]:
    """Run the search ``plan``, or continue it, and return the outcome of every budget.

    Each stage takes the frozen value of the stage before and returns the next one. ``announce`` receives every event,
    see `nas.stages.events`; the last one is SearchConcluded or SearchStopped. What this machine has not of the search
    comes from the ``mirror`` first.

    Raises InputError for wrong inputs, and NothingFeasibleError when a budget has no complete trial; the winners of the
    other budgets are exported before.
    """
    with _only_driver(plan), _stopped(announce):
        if mirror:
            mirror.begin(plan, announce)
        prepared = prepare(plan, workers, announce)
        study = prepared.study
        add_seconds(study, "prepare", prepared.started)
        with timed(study, "screen"):
            screened = screen(prepared, workers, announce)
        with timed(study, "try"):
            tried = try_candidates(screened, workers, announce)
        with timed(study, "finish"):
            finished = finish(tried, workers, announce)
        return conclude(finished, workers, announce)


@contextmanager
def _only_driver(plan: Plan) -> Iterator[None]:
    """Allow one driver a study, in a folder of its own. A second driver would fail the running trials of the first."""
    lock = plan.folder / "driver.lock"
    try:
        if plan.folder.is_dir() and not lock.exists() and any(plan.folder.iterdir()):
            raise InputError(f"study {plan.study!r}: {plan.folder} holds files of something else; give another --study")
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {plan.output}: {error.strerror} ({plan.folder}); give another folder") from error
    try:
        with FileLock(lock).acquire(blocking=False):
            yield
    except Timeout as error:
        raise InputError(
            f"study {plan.study!r}: another search is running it in {plan.folder}; wait for it, or give another --study"
        ) from error


@contextmanager
def _stopped(announce: Listener) -> Iterator[None]:
    """Announce that the search has stopped when an error ends it."""
    try:
        yield
    except BaseException as error:
        announce(SearchStopped(interrupted=isinstance(error, KeyboardInterrupt)))
        raise
