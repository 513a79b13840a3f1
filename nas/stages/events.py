"""What happens in a search, as frozen values, and how listeners hear of it.

A stage announces each event once. It does not know who listens: the terminal (`nas.display`), the report
(`nas.report`) and MLflow (`nas.tracking`) do, and so may anybody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.choosing.outcome import Outcome
from nas.planning.plan import Plan
from nas.running.tasks import PreparedTeacher
from nas.study.records import FinalRecord, TrialRecord
from trials.evaluate.reading import Reading
from trials.preparation import Preparation
from trials.storage.redact import redacted_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progressed:
    """A step begins or a fact is known; ``message`` is one line for a person."""

    message: str


@dataclass(frozen=True)
class TeacherPrepared:
    """Teacher, text, importance scores and targets are ready."""

    preparation: Preparation


@dataclass(frozen=True)
class SearchPrepared:
    """The plan is final. ``study_id`` names this very study for ever."""

    plan: Plan
    study_id: str
    teacher: PreparedTeacher


@dataclass(frozen=True)
class MeasuringStarted:
    """``quantity`` (`nas.study.trial_records.SCREENED` or `TIMED`) is measured for ``total`` architectures.

    Of these, ``done`` were measured in an earlier run.
    """

    quantity: str
    total: int
    done: int


@dataclass(frozen=True)
class ArchitectureMeasured:
    """One architecture has a value, or has none for ``problem``. ``known`` holds all values so far, by key."""

    quantity: str
    key: str
    known: Mapping[str, float]
    problem: str = ""


@dataclass(frozen=True)
class TrialsStarted:
    """Trials begin. ``records`` are those that the study has already."""

    plan: Plan
    records: Sequence[TrialRecord]


@dataclass(frozen=True)
class TrialChanged:
    """A trial has started, reached a rung or ended; ``record`` is the trial as it is now."""

    record: TrialRecord


@dataclass(frozen=True)
class FinalsStarted:
    """The final stage begins. ``finals`` are all finals, those of an earlier run included."""

    plan: Plan
    finals: Sequence[FinalRecord]


@dataclass(frozen=True)
class FinalChanged:
    """A final has started, reached a rung or ended. ``finals`` are all finals, ``record`` is the one that changed."""

    finals: Sequence[FinalRecord]
    record: FinalRecord


@dataclass(frozen=True)
class EvaluationStarted:
    """``models`` models will be evaluated on the test texts of the plan."""

    plan: Plan
    models: int


@dataclass(frozen=True)
class ModelEvaluated:
    """A model of the final table has its ``readings`` on test text, or has none for ``problem``."""

    name: str
    readings: Sequence[Reading] = ()
    problem: str = ""


@dataclass(frozen=True)
class StepEnded:
    """What the last ``...Started`` event began has come to its end: measuring, trials, finals or tests."""


@dataclass(frozen=True)
class BudgetConcluded:
    """The winner of one budget is chosen and exported."""

    outcome: Outcome


@dataclass(frozen=True)
class FilesWritten:
    """Files of the report are on disk. ``folder`` is where they belong in an artifact store."""

    paths: Sequence[Path]
    folder: str


@dataclass(frozen=True)
class SearchConcluded:
    """All budgets have a winner. ``records`` are all trials of the study."""

    plan: Plan
    outcomes: Sequence[Outcome]
    records: Sequence[TrialRecord]


@dataclass(frozen=True)
class SearchStopped:
    """The search ended without a result for every budget. ``interrupted`` means that the user stopped it."""

    interrupted: bool


Event = (
    Progressed
    | TeacherPrepared
    | SearchPrepared
    | MeasuringStarted
    | ArchitectureMeasured
    | TrialsStarted
    | TrialChanged
    | FinalsStarted
    | FinalChanged
    | EvaluationStarted
    | ModelEvaluated
    | StepEnded
    | BudgetConcluded
    | FilesWritten
    | SearchConcluded
    | SearchStopped
)
Listener = Callable[[Event], None]


class Announcer:
    """Passes every event to all ``listeners``, in their order.

    A listener that raises an Exception never stops a search. A warning names the listener, the event and the error,
    once for each listener and kind of event.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self._failed: set[tuple[int, str]] = set()

    def __call__(self, event: Event) -> None:
        for listener in list(self.listeners):
            try:
                listener(event)
            except Exception as error:  # whatever a disk, a terminal or a library raises; it is reported below
                self._report(listener, event, error)

    def _report(self, listener: Listener, event: Event, error: Exception) -> None:
        which = (id(listener), type(event).__name__)
        if which in self._failed:
            return
        self._failed.add(which)
        problem = redacted_line(error)
        log.warning("%s failed at %s (%s); the search continues", type(listener).__name__, which[1], problem)
        log.debug("the error of %s", type(listener).__name__, exc_info=error)
