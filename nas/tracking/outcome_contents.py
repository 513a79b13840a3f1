"""What a search found, as the contents of MLflow's runs and models: pure functions of its outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nas.choosing.comparison import TEACHER, WINNER, Comparison, ComparisonRow
from nas.choosing.generality import excesses
from nas.choosing.outcome import Outcome
from nas.choosing.selection import counts
from nas.display.readings_table import column_name
from nas.planning.forecast import plan_lines
from nas.planning.plan import Plan
from nas.report.final_report import comparison_markdown
from nas.report.html.page import PAGE, REPORT
from nas.report.terminal import size_and_loss, sizes_beside_teacher
from nas.study.records import FinalRecord
from nas.tracking.messages import RunJudged
from nas.tracking.mlflow_view import BEST, model_name
from trials.text.validation import OF_TEXT

AGREEMENTS = ("screen", "final")  # the rankings that decide what is tried, and what wins


def metrics(outcome: Outcome) -> dict[str, float]:
    """The metrics of the parent run: the winner's. The runs of the finals have the same, so charts compare them."""
    winner = outcome.winner
    return {
        "val_loss": winner.val_loss,
        "parameters": float(winner.record.parameters),
        "tokens": float(winner.tokens + winner.final_tokens),
        "seconds": outcome.seconds,
    }


def tags(outcome: Outcome) -> dict[str, str]:
    """The tags of the parent run: the winner, the verdict on it, the teacher, and how far early rankings were right.

    The teacher's figures are tags: as metrics, each would be a chart of one bar.
    """
    verdict = {"winner_vs_runner_up": outcome.comparison.verdict} if outcome.comparison else {}
    agreed = {f"rank_agreement_{one.name}": str(one) for one in outcome.agreements if one.name in AGREEMENTS}
    trials = str(sum(counts(outcome.records).values()))
    own = {"winner": outcome.winner.key, "architecture": outcome.winner.key, "trials": trials}
    return {**own, **verdict, **_of_teacher(outcome), **agreed}


def _of_teacher(outcome: Outcome) -> dict[str, str]:
    rows = outcome.comparison.rows if outcome.comparison else ()
    found = {"val_loss": outcome.preparation.teacher_loss}
    found |= {f"{OF_TEXT}{name}": loss for name, loss in outcome.preparation.teacher_losses.items()}
    found |= next((_readings(row) for row in rows if TEACHER in row.roles), {})
    return {f"teacher_{name}": f"{value:.4f}" for name, value in found.items()}


def judgements(study_id: str, outcome: Outcome) -> Iterator[RunJudged]:
    """The roles of the finals, their distance from the winner and their readings on other text.

    Without finals: the role of the trial that won.
    """
    record = outcome.winner.record
    if outcome.comparison is None:
        assert not isinstance(record, FinalRecord), "a final wins only in a comparison"
        yield RunJudged(study_id, str(record.number), {}, {"role": WINNER}, True, record.ended or 0.0)
        return
    finals = {one.architecture.key: one for one in outcome.comparison.finals}
    for row in outcome.comparison.rows:
        if TEACHER not in row.roles:
            final = finals[row.architecture]
            found = {**_minus_winner(row), **_readings(row), **_above_teacher(outcome.comparison, row)}
            role = {"role": ", ".join(row.roles)}
            yield RunJudged(study_id, f"final {final.name}", found, role, WINNER in row.roles, final.ended or 0.0)


def _minus_winner(row: ComparisonRow) -> dict[str, float]:
    if row.difference is None:
        return {}
    mean, low, high = row.difference.mean, row.difference.low, row.difference.high
    return {"minus_winner": mean, "minus_winner_low": low, "minus_winner_high": high}


def _readings(row: ComparisonRow) -> dict[str, float]:
    return {f"test_{column_name(one).replace(' ', '_')}": one.value for one in row.test}


def _above_teacher(comparison: Comparison, row: ComparisonRow) -> dict[str, float]:
    found = next((one for one in excesses(comparison) if one.architecture == row.architecture), None)
    return {"above_teacher_calibrated": found.own, "above_teacher_other": found.other} if found else {}


def registered_name(outcome: Outcome) -> str:
    """The name of the registered model of a winner. Each of several budgets has a model of its own."""
    plan = outcome.plan
    return model_name(f"{plan.study}-{plan.part}" if plan.part else plan.study)


def planned_text(plan: Plan) -> str:
    """The description of the parent run while the search runs, as Markdown: its command and its plan."""
    return "\n".join(["**Not finished.**", "", *_plan_list(plan)])


def concluded_text(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """The description of the parent run at the end, as Markdown: the result first, then the plan."""
    page = f"The page with all plots is `{REPORT}/{PAGE}` under Artifacts."
    return "\n".join([*(verdict_text(one) for one in outcomes), "", page, "", *_plan_list(plan)])


def verdict_text(outcome: Outcome) -> str:
    """The result for one budget, as Markdown: the winner, its lead, the final table, and the code that loads it."""
    winner, comparison = outcome.winner, outcome.comparison
    budget = f" of budget {outcome.plan.target.budget.text}" if outcome.plan.part else ""
    trusted = "" if winner.record.stock else " It runs the modelling file of its folder."
    return "\n".join(
        [
            f"**The winner{budget} is {winner.key}**: {size_and_loss(outcome)}.",
            "",
            *(f"- {line}" for line in [sizes_beside_teacher(outcome), *(comparison.notes if comparison else ())]),
            "",
            *([comparison_markdown(comparison)] if comparison else []),
            f"Load it with `mlflow.transformers.load_model('models:/{registered_name(outcome)}@{BEST}')`.{trusted}",
        ]
    )


def _plan_list(plan: Plan) -> list[str]:
    lines = {"command": f"`{plan.command}`", **plan_lines(plan)}
    return [f"- {what}: {value}" for what, value in lines.items()]
