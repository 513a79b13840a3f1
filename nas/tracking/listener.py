"""The listener that brings a search to MLflow: the parent run, every trial and final, the report and the winners."""

from __future__ import annotations

from rich.console import Console

from nas.planning.plan import Plan
from nas.stages import events
from nas.tracking.messages import (
    Artifacts,
    FinalChanged,
    ModelExported,
    SearchFinished,
    SearchStarted,
    TrialChanged,
)
from nas.tracking.mlflow_view import dataset
from nas.tracking.outcome_contents import (
    concluded_text,
    judgements,
    metrics,
    planned_text,
    registered_name,
    tags,
    verdict_text,
)
from nas.tracking.tracker import Tracker, code_version, tracking_uri, ui_lines
from trials.preparation import Preparation
from trials.storage.redact import redacted
from trials.teacher.revision import commit_of

# How long the end of a search waits for a slow server. It waits no longer for one that failed before the end.
DONE_SECONDS, STOPPED_SECONDS = 30.0, 2.0


class MlflowListener:
    """Turns events into messages for a `Tracker`. What it cannot deliver at the end, it says on ``console``."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tracker: Tracker | None = None
        self.study_id = ""
        self._told = False

    @property
    def ui_lines(self) -> tuple[str, ...]:
        """How to see the runs of the search; nothing before it is prepared."""
        return ui_lines(self.tracker.uri, self.tracker.experiment_id, self.study_id) if self.tracker else ()

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.SearchPrepared):
            self._start(event)
        elif self.tracker is not None:
            self._follow(event, self.tracker)

    def _start(self, event: events.SearchPrepared) -> None:
        plan, self.study_id = event.plan, event.study_id
        artifacts = plan.output / "mlartifacts"
        self.tracker = Tracker(tracking_uri(plan.output), plan.settings.experiment, plan.folder / "outbox", artifacts)
        recipe = {name: value for name, value in plan.recipe.to_dict().items() if name != "seed"}
        settings = {**plan.settings.model_dump(exclude_none=True), **recipe}
        settings |= {"teacher_commit": commit} if (commit := commit_of(plan.target.folder)) else {}
        settings = {name: redacted(one) if isinstance(one, str) else one for name, one in settings.items()}
        preparation = event.teacher.preparation
        text = dataset(redacted(plan.recipe.corpus), preparation.corpus_fingerprint)
        facts = _facts(plan, preparation)
        started = SearchStarted(self.study_id, settings, facts, plan.study, description=planned_text(plan), corpus=text)
        self.tracker.put(started)

    def _follow(self, event: events.Event, tracker: Tracker) -> None:
        if tracker.experiment_id and not self._told:  # MLflow has answered, so the address is complete
            self._told = True
            self._say_where()
        match event:
            case events.TrialChanged():
                tracker.put(TrialChanged(self.study_id, event.record))
            case events.FinalsStarted():
                for record in event.finals:
                    if record.state != "WAITING":  # one that waits has no run yet
                        tracker.put(FinalChanged(self.study_id, record))
            case events.FinalChanged():
                tracker.put(FinalChanged(self.study_id, event.record))
            case events.FilesWritten():
                tracker.put(Artifacts(self.study_id, tuple(map(str, event.paths)), event.folder))
            case events.SearchConcluded():
                self._finish(event, tracker)
                self._close(tracker, DONE_SECONDS)
            case events.SearchStopped():
                tracker.put(SearchFinished(self.study_id, status="KILLED" if event.interrupted else "FAILED"))
                self._close(tracker, STOPPED_SECONDS)

    def _say_where(self) -> None:
        for place, line in enumerate(self.ui_lines):
            self.console.print(f"{'' if place else 'watch it:':12}{line}", highlight=False, soft_wrap=True)

    def _finish(self, event: events.SearchConcluded, tracker: Tracker) -> None:
        """Mark the finals, register the winners and end the parent run.

        Of several budgets, each has a registered model of its own, and the names of its metrics and tags begin with it.
        """
        found, verdicts = dict[str, float](), dict[str, str]()
        for outcome in event.outcomes:
            for judgement in judgements(self.study_id, outcome):
                tracker.put(judgement)
            name, text = registered_name(outcome), f"{verdict_text(outcome)}\n\n`{event.plan.command}`"
            tracker.put(ModelExported(self.study_id, name, str(outcome.winner_path), text))
            prefix = f"{outcome.plan.part}/" if outcome.plan.part else ""
            found |= {f"{prefix}{name}": value for name, value in metrics(outcome).items()}
            verdicts |= {f"{prefix}{name}": value for name, value in tags(outcome).items()}
        text = concluded_text(event.plan, event.outcomes)
        tracker.put(SearchFinished(self.study_id, metrics=found, tags=verdicts, description=text))

    def _close(self, tracker: Tracker, seconds: float) -> None:
        left = tracker.close(STOPPED_SECONDS if tracker.problem else seconds)
        if left:
            why = f" ({tracker.problem})" if tracker.problem else ""
            self.console.print(f"MLflow: {left} messages not delivered{why}; the next run of this study delivers them")
        if tracker.rejected:
            self.console.print(f"MLflow refused {tracker.rejected} messages: see {tracker.outbox.root}")


def _facts(plan: Plan, preparation: Preparation) -> dict[str, str]:
    """The tags of the parent run: teacher, text, budgets, command and code version."""
    return {
        "teacher": f"{plan.settings.model} ({preparation.fingerprint})",
        "teacher_loss": f"{preparation.teacher_loss:.4f}",
        "corpus": f"{preparation.corpus} ({preparation.corpus_fingerprint})",
        "budget": "; ".join(map(str, plan.target.budgets)),
        "command": plan.command,
        **code_version(),
    }
