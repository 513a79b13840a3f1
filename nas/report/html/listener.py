"""The listener that keeps the page of a search up to date while it runs."""

from __future__ import annotations

import time
from pathlib import Path

import optuna

from nas.report.html.data import page_of
from nas.report.html.page import PAGE, REPORT, write
from nas.stages.events import (
    ArchitectureMeasured,
    Event,
    FilesWritten,
    FinalChanged,
    Listener,
    SearchConcluded,
    SearchPrepared,
    SearchStopped,
    StepEnded,
    TrialChanged,
)
from nas.study.snapshot import open_study, snapshot

REST = 20.0  # so many times as long as the last writing took, the page rests: it never takes more than 5 % of the time


class PageWriter:
    """Writes the page after every rung of a trial or a final, after each stage, and at the end.

    The page is made from the study alone, so `python -m nas.report` makes the same one. It is announced as a file of
    the report after each stage and at the end.
    """

    def __init__(self, announce: Listener) -> None:
        self.announce = announce
        self._study: optuna.Study | None = None
        self._path = Path(PAGE)
        self._rests_until = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case SearchPrepared():
                self._path = event.plan.folder / REPORT / PAGE
                self._study = open_study(event.plan.storage, event.plan.study)
                self._write(running=True)
            case TrialChanged() | FinalChanged() | ArchitectureMeasured():
                if time.monotonic() >= self._rests_until:
                    self._write(running=True)
            case StepEnded():
                self._publish(running=True)
            case SearchConcluded() | SearchStopped():
                self._publish(running=False)

    def _publish(self, running: bool) -> None:
        if self._study is not None:  # a search may end before its teacher is prepared
            self._write(running)
            self.announce(FilesWritten([self._path], REPORT))

    def _write(self, running: bool) -> None:
        if self._study is None:
            return
        began = time.monotonic()
        write(page_of([snapshot(self._study)], running), self._path)
        self._rests_until = time.monotonic() + REST * (time.monotonic() - began)
