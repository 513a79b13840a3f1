"""What a search found, and the same as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.choosing.agreement import Agreement
from nas.choosing.comparison import Comparison, ComparisonRow
from nas.choosing.selection import counts
from nas.planning.plan import Plan
from nas.report.front_report import front_values
from nas.stages.finish import student_of
from nas.study.records import FinalRecord, TrialRecord, text_losses
from trials.distill.results import STUDENT
from trials.preparation import Preparation


@dataclass(frozen=True)
class Chosen:
    """What is exported: a COMPLETE trial, or a final that went ``final_tokens`` beyond the trial's ``tokens``.

    ``weights`` is the folder of its student; ``verdict`` says how it stands to the next best.
    """

    record: TrialRecord | FinalRecord
    tokens: int
    final_tokens: int
    weights: Path
    verdict: str = ""

    @classmethod
    def trial(cls, plan: Plan, record: TrialRecord) -> Chosen:
        """The student of a trial."""
        return cls(record, plan.recipe.tokens, 0, plan.folder / "trials" / record.architecture.key / STUDENT)

    @classmethod
    def final(cls, plan: Plan, record: FinalRecord, verdict: str) -> Chosen:
        """The student of a final."""
        return cls(record, plan.recipe.tokens, plan.final_tokens, student_of(plan, record), verdict)

    @property
    def key(self) -> str:
        """The architecture's name."""
        return self.record.architecture.key

    @property
    def val_loss(self) -> float:
        """On validation text, in nats per token."""
        assert self.record.val_loss is not None, "only what is COMPLETE is chosen"
        return self.record.val_loss


@dataclass(frozen=True)
class Outcome:
    """What a search found. Paths are exported checkpoints; ``comparison`` is None without a final stage.

    ``screened`` are losses before retraining by the architecture's key, None where there is none; ``experiment_id`` is
    MLflow's, None where it has not answered.
    """

    plan: Plan
    preparation: Preparation
    records: list[TrialRecord]
    winner: Chosen
    winner_path: Path
    stock: Chosen | None
    stock_path: Path | None
    comparison: Comparison | None
    agreements: list[Agreement]
    screened: Mapping[str, float | None]
    seconds: float
    experiment_id: str | None = None

    @property
    def finals(self) -> tuple[FinalRecord, ...]:
        """All that went on from the trials, and the baselines."""
        return self.comparison.finals if self.comparison else ()


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The result as one JSON document: what was found for the budget, or for each of several under "budgets"."""
    if len(outcomes) == 1:
        return _document(outcomes[0])
    return {"study": outcomes[0].plan.study, "budgets": [_document(one) for one in outcomes]}


def _document(outcome: Outcome) -> dict[str, Any]:
    plan, preparation, comparison = outcome.plan, outcome.preparation, outcome.comparison
    budget = plan.target.budget
    return {
        "study": plan.study,
        "model": plan.settings.model,
        "budget": {"text": plan.settings.budget, "minimum": budget.minimum, "maximum": budget.maximum},
        "teacher": {
            "params": plan.target.shape.parameters(plan.target.shape.full),
            "val_loss": preparation.teacher_loss,
            **_losses(dict(preparation.teacher_losses)),
        },
        "best": _described(outcome.winner, outcome.winner_path),
        "best_stock": _described(outcome.stock, outcome.stock_path) if outcome.stock and outcome.stock_path else None,
        "screened": len(outcome.screened),
        "trials": counts(outcome.records),
        **({"front": front_values(outcome.records, plan.objectives)} if len(plan.objectives) > 1 else {}),
        "final": [_row(row) for row in comparison.rows] if comparison else [],
        "winner_vs_runner_up": _versus(comparison) if comparison else None,
        "rank_agreement": [asdict(one) for one in outcome.agreements],
        "seconds": round(outcome.seconds, 1),
    }


def _described(chosen: Chosen, path: Path) -> dict[str, Any]:
    return {
        "architecture": chosen.record.architecture.to_dict(),
        "params": chosen.record.parameters,
        "val_loss": chosen.val_loss,
        **_losses(text_losses(chosen.record)),
        "tokens": chosen.tokens + chosen.final_tokens,
        "stock": chosen.record.stock,
        "path": str(path),
    }


def _losses(losses: dict[str, float]) -> dict[str, Any]:
    return {"val_losses": losses} if losses else {}


def _row(row: ComparisonRow) -> dict[str, Any]:
    return {
        "roles": list(row.roles),
        "architecture": row.architecture or None,
        "params": row.parameters,
        "share": row.share,
        "stock": row.stock,
        "tokens": row.tokens,
        "val_loss": row.val_loss,
        **_losses(dict(row.losses)),
        "vs_winner": row.difference.to_dict() if row.difference else None,
        **({"failed": row.reason} if row.reason else {}),
        **({"test": [one.to_dict() for one in row.test]} if row.test else {}),
    }


def _versus(comparison: Comparison) -> dict[str, Any] | None:
    """The runner-up's loss minus the winner's, nats per token."""
    if comparison.runner_up is None or comparison.difference is None:
        return None
    verdict = "distinguishable" if comparison.difference.distinguishable else "not distinguishable"
    return {"runner_up": comparison.runner_up.architecture.key, **comparison.difference.to_dict(), "verdict": verdict}
