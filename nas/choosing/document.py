"""The result as one JSON document: for ``--json``, and in the study for whoever reads it later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from nas.choosing.comparison import Comparison, ComparisonRow
from nas.choosing.generality import Excess, excesses
from nas.choosing.outcome import Chosen, Outcome
from nas.choosing.selection import counts, front_values
from nas.study.records import text_losses
from trials.export.loads_in import loads_in


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The result as one JSON document: what was found for the budget, or for each of several under "budgets"."""
    if len(outcomes) == 1:
        return _document(outcomes[0])
    return {"study": outcomes[0].plan.study, "budgets": [_document(one) for one in outcomes]}


def _document(outcome: Outcome) -> dict[str, Any]:
    plan, preparation, comparison = outcome.plan, outcome.preparation, outcome.comparison
    budget = plan.target.budget
    stock = None
    if outcome.stock and outcome.stock_path:
        stock = _described(outcome, outcome.stock, outcome.stock_path)
    return {
        "study": plan.study,
        "model": plan.settings.model,
        "budget": {
            "text": plan.settings.budget,
            "unit": budget.unit,
            "minimum": budget.minimum,
            "maximum": budget.maximum,
        },
        "teacher": {
            "params": outcome.teacher_parameters,
            "val_loss": preparation.teacher_loss,
            **_losses(dict(preparation.teacher_losses)),
        },
        "best": _described(outcome, outcome.winner, outcome.winner_path),
        "best_stock": stock,
        "screened": len(outcome.screened),
        "trials": counts(outcome.records),
        **({"front": front_values(outcome.records, plan.objectives)} if len(plan.objectives) > 1 else {}),
        "final": [_row(row) for row in comparison.rows] if comparison else [],
        "above_teacher": [_above(one) for one in excesses(comparison)] if comparison else [],
        "winner_vs_runner_up": _versus(comparison) if comparison else None,
        "rank_agreement": [asdict(one) for one in outcome.agreements],
        "seconds": round(outcome.seconds, 1),
    }


def _described(outcome: Outcome, chosen: Chosen, path: Path) -> dict[str, Any]:
    return {
        "architecture": chosen.record.architecture.to_dict(),
        "params": chosen.record.parameters,
        "val_loss": chosen.val_loss,
        **_losses(text_losses(chosen.record)),
        "tokens": chosen.tokens + chosen.final_tokens,
        "stock": chosen.record.stock,
        "loads_in": loads_in(outcome.plan.target.shape, chosen.record.architecture).to_dict(),
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
        **({"loads_in": row.loads_in} if row.loads_in else {}),
        "tokens": row.tokens,
        "val_loss": row.val_loss,
        **_losses(dict(row.losses)),
        "vs_winner": row.difference.to_dict() if row.difference else None,
        **({"failed": row.reason} if row.reason else {}),
        **({"test": [one.to_dict() for one in row.test]} if row.test else {}),
    }


def _above(one: Excess) -> dict[str, Any]:
    """Nats per token above the teacher: on the text that the model was calibrated on, and on others."""
    others = {name: value if isfinite(value) else None for name, value in one.others.items()}
    return {"roles": list(one.roles), "architecture": one.architecture, "calibrated": one.own, "other": others}


def _versus(comparison: Comparison) -> dict[str, Any] | None:
    """The runner-up's loss minus the winner's, nats per token."""
    if comparison.runner_up is None or comparison.difference is None:
        return None
    verdict = "distinguishable" if comparison.difference.distinguishable else "not distinguishable"
    return {"runner_up": comparison.runner_up.architecture.key, **comparison.difference.to_dict(), "verdict": verdict}
