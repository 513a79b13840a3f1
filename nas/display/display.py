"""The listener that shows a search on the terminal while it runs."""

from __future__ import annotations

from rich.console import Console

from nas.display.clock import Clock
from nas.display.final_progress import FinalProgress
from nas.display.measuring_progress import MeasuringProgress
from nas.display.pace import Pace
from nas.display.readings_table import column_name, measured
from nas.display.trial_progress import TrialProgress
from nas.stages.events import (
    ArchitectureMeasured,
    EvaluationStarted,
    Event,
    FinalChanged,
    FinalsStarted,
    MeasuringStarted,
    ModelEvaluated,
    Progressed,
    SearchStopped,
    StepEnded,
    TeacherPrepared,
    TrialChanged,
    TrialsStarted,
)
from trials.preparation import Preparation


class Display:
    """Prints what happens to ``console``: live tables and bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.clock, self.pace = Clock(), Pace()
        self._measuring: MeasuringProgress | None = None
        self._trials: TrialProgress | None = None
        self._finals: FinalProgress | None = None
        self._tested, self._models = 0, 0

    def __call__(self, event: Event) -> None:
        match event:
            case Progressed():
                self._print(f"[{self.clock}] {event.message}")
            case TeacherPrepared():
                self._print(f"[{self.clock}] {_prepared(event.preparation)}")
            case MeasuringStarted():
                self._measuring = MeasuringProgress(self.console, self.clock, event.quantity, event.total, event.done)
                self._measuring.start()
            case ArchitectureMeasured() if self._measuring:
                self._measuring.update(event.key, event.known, event.problem)
            case TrialsStarted():
                self._trials = TrialProgress(self.console, self.clock, self.pace, event.plan, event.records)
                self._trials.start()
            case TrialChanged() if self._trials:
                self._trials.update(event.record)
            case FinalsStarted():
                self._finals = FinalProgress(self.console, self.clock, self.pace, event.plan, event.finals)
                self._finals.start()
            case FinalChanged() if self._finals:
                self._finals.update(event.finals, event.record)
            case EvaluationStarted():
                self._tested, self._models = 0, event.models
                names = ", ".join(task.name for task in event.plan.tests)
                self._print(f"[{self.clock}] evaluating {event.models} models on {names} ...")
            case ModelEvaluated():
                self._print(self._test_line(event))
            case StepEnded() | SearchStopped():
                self._stop()

    def _stop(self) -> None:
        for one in (self._measuring, self._trials, self._finals):
            if one is not None:
                one.stop()
        self._measuring, self._trials, self._finals = None, None, None

    def _test_line(self, event: ModelEvaluated) -> str:
        if event.problem:
            return f"{event.name} could not be evaluated: {event.problem}"
        self._tested += 1
        figures = ", ".join(f"{column_name(one)} {measured(one)}" for one in event.readings)
        return f"[{self.clock}, {self._tested}/{self._models} done] {event.name}: {figures}"

    def _print(self, line: str) -> None:
        wraps = self.console.is_terminal  # a line of a log stays whole
        self.console.print(line, highlight=False, soft_wrap=not wraps, markup=False)


def _prepared(preparation: Preparation) -> str:
    scores = "found in the cache" if preparation.importance_cached else "computed"
    return (
        f"prepared in {preparation.seconds:.0f} s: importance scores {scores}; text {preparation.corpus}; "
        f"the teacher's validation loss is {preparation.teacher_loss:.4f}"
    )
