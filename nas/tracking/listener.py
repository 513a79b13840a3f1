"""The listener that brings a search to MLflow: the parent run, every trial and final, the report and the winners."""

from __future__ import annotations

from rich.console import Console

from nas.choosing.generality import excesses
from nas.choosing.outcome import Outcome
from nas.choosing.selection import COMPETING, counts
from nas.display.readings_table import column_name
from nas.planning.forecast import plan_lines
from nas.planning.plan import Plan
from nas.planning.redact import redacted
from nas.stages import events
from nas.tracking.messages import (
    Artifacts,
    FinalChanged,
    ModelExported,
    SearchFinished,
    SearchStarted,
    TrialChanged,
)
from nas.tracking.tracker import Tracker, code_version, tracking_uri
from trials.preparation import Preparation
from trials.text.validation import OF_TEXT

DONE_SECONDS, STOPPED_SECONDS = 30.0, 2.0  # how long the end of a search waits for a slow server


class MlflowListener:
    """Turns events into messages for a `Tracker`. What it cannot deliver at the end, it says on ``console``."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tracker: Tracker | None = None
        self.study_id = ""

    @property
    def experiment_id(self) -> str | None:
        """MLflow's name of the experiment, or None when MLflow has not answered."""
        return self.tracker.experiment_id if self.tracker else None

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
        settings = {name: redacted(one) if isinstance(one, str) else one for name, one in settings.items()}
        tags = _tags(plan, event.teacher.preparation)
        self.tracker.put(SearchStarted(self.study_id, settings, tags, name=plan.study))

    def _follow(self, event: events.Event, tracker: Tracker) -> None:
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

    def _finish(self, event: events.SearchConcluded, tracker: Tracker) -> None:
        """Register the winners and end the parent run.

        Of several budgets, each has a registered model of its own, and the names of its metrics and tags begin with it.
        """
        metrics, tags = dict[str, float](), dict[str, str]()
        for outcome in event.outcomes:
            part = outcome.plan.part
            name, prefix = (f"{event.plan.study}-{part}", f"{part}/") if part else (event.plan.study, "")
            tracker.put(ModelExported(self.study_id, name, str(outcome.winner_path), outcome.winner.key))
            metrics |= {f"{prefix}{name}": value for name, value in _metrics(outcome).items()}
            tags |= {f"{prefix}{name}": value for name, value in _verdict(outcome).items()}
        tracker.put(SearchFinished(self.study_id, metrics=metrics, tags=tags))

    def _close(self, tracker: Tracker, seconds: float) -> None:
        left = tracker.close(seconds)
        if left:
            why = f" ({tracker.problem})" if tracker.problem else ""
            self.console.print(f"MLflow: {left} messages not delivered{why}; the next run of this study delivers them")
        if tracker.rejected:
            self.console.print(f"MLflow refused {tracker.rejected} messages: see {tracker.outbox.root}")


def _tags(plan: Plan, preparation: Preparation) -> dict[str, str]:
    """The tags of the parent run: teacher, text, budgets, command, plan and code version."""
    return {
        "teacher": f"{plan.settings.model} ({preparation.fingerprint})",
        "teacher_loss": f"{preparation.teacher_loss:.4f}",
        "corpus": f"{preparation.corpus} ({preparation.corpus_fingerprint})",
        "budget": "; ".join(map(str, plan.target.budgets)),
        "command": plan.command,
        **{f"plan.{what}": value for what, value in plan_lines(plan).items()},
        **code_version(),
    }


def _metrics(outcome: Outcome) -> dict[str, float]:
    states = {f"trials_{state.lower()}": float(count) for state, count in counts(outcome.records).items()}
    stock = {"best_stock_val_loss": outcome.stock.val_loss} if outcome.stock else {}
    return {
        "best_val_loss": outcome.winner.val_loss,
        "best_parameters": float(outcome.winner.record.parameters),
        "teacher_val_loss": outcome.preparation.teacher_loss,
        "seconds": outcome.seconds,
        **{f"teacher_{OF_TEXT}{name}": loss for name, loss in outcome.preparation.teacher_losses.items()},
        **stock,
        **states,
        **_final_metrics(outcome),
        **{f"kendall_tau/{one.name}": one.tau for one in outcome.agreements if one.tau is not None},
        **{f"kendall_tau_low/{one.name}": one.low for one in outcome.agreements if one.low is not None},
        **{f"kendall_tau_high/{one.name}": one.high for one in outcome.agreements if one.high is not None},
        **{f"kendall_n/{one.name}": float(one.pairs) for one in outcome.agreements},
    }


def _final_metrics(outcome: Outcome) -> dict[str, float]:
    """The final table as metrics by role, and the winner's lead over the runner-up with its interval."""
    if outcome.comparison is None:
        return {}
    table = {
        f"final_val_loss/{role}": row.val_loss
        for row in outcome.comparison.rows
        for role in row.roles
        if row.val_loss is not None and role not in COMPETING  # several finals may have this role
    }
    tests = {
        f"test/{column_name(one).replace(' ', '_')}/{role}": one.value
        for row in outcome.comparison.rows
        for role in row.roles
        if role not in COMPETING  # several finals may have this role
        for one in row.test
    }
    above = {
        f"above_teacher/{where}/{role}": value
        for one in excesses(outcome.comparison)
        for role in one.roles
        if role not in COMPETING
        for where, value in (("calibrated", one.own), ("other", one.other))
    }
    lead = outcome.comparison.difference
    lead_metrics = {} if lead is None else {"lead": lead.mean, "lead_low": lead.low, "lead_high": lead.high}
    return {**table, **tests, **above, **lead_metrics}


def _verdict(outcome: Outcome) -> dict[str, str]:
    return {"winner_vs_runner_up": outcome.comparison.verdict} if outcome.comparison else {}
