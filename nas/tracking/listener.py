"""What a search tells MLflow, and when: the parent run, every change of a trial, tables, plots and the winner."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from nas.choosing.selection import COMPETING, counts
from nas.display.readings_table import column_name
from nas.planning.forecast import summary
from nas.planning.plan import Plan
from nas.study.records import FinalRecord, TrialRecord
from nas.study.study import SearchStudy
from nas.tracking.tracker import (
    Artifacts,
    FinalChanged,
    ModelExported,
    SearchFinished,
    SearchStarted,
    Tracker,
    TrialChanged,
    code_version,
    tracking_uri,
)
from trials.losses.window_losses import OF_TEXT
from trials.trial import Preparation

if TYPE_CHECKING:
    from nas.choosing.outcome import Outcome

CLOSE_SECONDS = {"done": 30.0, "broken off": 2.0}  # how long the end of a search waits for a slow server


class Teller:
    """The tracking of one run of the command; a context manager that leaves nothing undelivered unsaid."""

    def __init__(self, plan: Plan, study: SearchStudy, console: Console) -> None:
        self.plan, self.console = plan, console
        self.uid = _uid(study)
        self.uri = tracking_uri(plan.output)
        self.tracker = Tracker(self.uri, plan.settings.experiment, plan.folder / "outbox", plan.output / "mlartifacts")
        self._ended = False

    def __enter__(self) -> Teller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.tracker.put(SearchFinished(self.uid, status=status))
        left = self.tracker.close(CLOSE_SECONDS["done" if error is None else "broken off"])
        if left:
            why = f" ({self.tracker.problem})" if self.tracker.problem else ""
            self.console.print(
                f"MLflow: {left} records not delivered yet{why}; the next run of this study delivers them"
            )
        if self.tracker.rejected:
            self.console.print(f"MLflow refused {self.tracker.rejected} records: see {self.plan.folder / 'outbox'}")

    def started(self, preparation: Preparation, command: str) -> None:
        """Open the parent run: settings, teacher, corpus, code and command."""
        recipe = {name: value for name, value in self.plan.recipe.to_dict().items() if name != "seed"}
        settings = {**self.plan.settings.model_dump(exclude_none=True), **recipe}
        self.tracker.put(SearchStarted(self.uid, settings, self._tags(preparation, command), name=self.plan.study))

    def _tags(self, preparation: Preparation, command: str) -> Mapping[str, str]:
        return {
            "teacher": f"{self.plan.settings.model} ({preparation.fingerprint})",
            "teacher_loss": f"{preparation.teacher_loss:.4f}",
            "corpus": f"{preparation.corpus} ({preparation.corpus_fingerprint})",
            "budget": "; ".join(map(str, self.plan.target.budgets)),
            "command": command,
            **self._plan_tags(),
            **code_version(),
        }

    def _plan_tags(self) -> dict[str, str]:
        """What the plan says, by name; of several budgets each has a line of its own there."""
        lines = defaultdict[str, list[str]](list)
        for what, value in summary(self.plan):
            lines[f"plan.{what}"].append(value)
        return {name: "; ".join(values) for name, values in lines.items()}

    def files(self, paths: list[Path], where: str) -> None:
        """Files for the parent run."""
        self.tracker.put(Artifacts(self.uid, tuple(str(path) for path in paths), where))

    def changed(self, records: list[TrialRecord], number: int) -> None:
        """A trial has started, reached a rung, or ended."""
        for record in records:
            if record.number == number:
                self.tracker.put(TrialChanged(self.uid, record))

    def final_changed(self, record: FinalRecord) -> None:
        """A final has started, come to a reading, or ended; one that waits has no run yet."""
        if record.state != "WAITING":
            self.tracker.put(FinalChanged(self.uid, record))

    def finished(self, outcomes: Sequence[Outcome]) -> None:
        """The winners' checkpoints, and the end of the parent run.

        Of several budgets, each has a registered model of its own, and its name before its metrics and tags.
        """
        metrics, tags = dict[str, float](), dict[str, str]()
        for outcome in outcomes:
            part = outcome.plan.part
            name, prefix = (f"{self.plan.study}-{part}", f"{part}/") if part else (self.plan.study, "")
            self.tracker.put(ModelExported(self.uid, name, str(outcome.winner_path), outcome.winner.key))
            metrics |= {f"{prefix}{name}": value for name, value in _metrics(outcome).items()}
            tags |= {f"{prefix}{name}": value for name, value in _verdict(outcome).items()}
        self.tracker.put(SearchFinished(self.uid, metrics=metrics, tags=tags))
        self._ended = True


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
    """The final table as metrics, by role, and the winner's lead with its interval."""
    if outcome.comparison is None:
        return {}
    table = {
        f"final_val_loss/{role}": row.val_loss
        for row in outcome.comparison.rows
        for role in row.roles
        if row.val_loss is not None and role not in COMPETING  # of which there may be several
    }
    tests = {
        f"test/{column_name(one).replace(' ', '_')}/{role}": one.value
        for row in outcome.comparison.rows
        for role in row.roles
        if role not in COMPETING  # of which there may be several
        for one in row.test
    }
    lead = outcome.comparison.difference
    lead_metrics = {} if lead is None else {"lead": lead.mean, "lead_low": lead.low, "lead_high": lead.high}
    return {**table, **tests, **lead_metrics}


def _verdict(outcome: Outcome) -> dict[str, str]:
    return {"winner_vs_runner_up": outcome.comparison.verdict} if outcome.comparison else {}


def _uid(study: SearchStudy) -> str:
    """A name of this very study: another folder may hold one of the same name, on the same MLflow server."""
    if study.recall("uid") is None:
        study.remember("uid", f"{study.name}-{uuid.uuid4().hex[:12]}")
    return str(study.recall("uid"))
