"""Stage 5, conclude: for each budget the winner is chosen, evaluated on test text and exported."""

from __future__ import annotations

import time

from nas.choosing.agreement import agreements
from nas.choosing.comparison import Comparison, compare
from nas.choosing.generality import excess_of
from nas.choosing.outcome import Chosen, Outcome
from nas.choosing.selection import best, best_stock, inside
from nas.planning.errors import NothingFeasibleError
from nas.planning.plan import Plan
from nas.planning.specs import final_student, final_windows, trial_student
from nas.running.workers import Workers
from nas.stages.events import BudgetConcluded, Listener, SearchConcluded
from nas.stages.export_winner import export_chosen
from nas.stages.finish import Finished
from nas.stages.keep_facts import add_seconds, keep_result
from nas.stages.on_test_text import with_test_readings
from nas.study.records import FinalRecord, TrialRecord
from trials.export.loads_in import loads_in


def conclude(finished: Finished, workers: Workers, announce: Listener) -> list[Outcome]:
    """Choose and export the winner of every budget.

    Raises NothingFeasibleError when a budget has no complete trial, or no final; the winners of the other budgets are
    exported before.
    """
    began, outcomes, nothing = time.monotonic(), [], []
    for part in finished.plan.parts:
        try:
            outcomes.append(_outcome(part, finished, workers, announce))
            keep_result(finished.study, outcomes[-1])
            announce(BudgetConcluded(outcomes[-1]))
        except NothingFeasibleError as error:
            nothing.append(f"budget {part.target.budget.text}: {error}" if part.part else str(error))
    if nothing:
        raise NothingFeasibleError("; ".join(nothing))
    add_seconds(finished.study, "conclude", began)
    announce(SearchConcluded(finished.plan, outcomes, finished.records))
    return outcomes


def _outcome(part: Plan, finished: Finished, workers: Workers, announce: Listener) -> Outcome:
    records = inside(part.target.budget, part.target.shape, finished.records)
    finals = inside(part.target.budget, part.target.shape, finished.finals)
    if best(records) is None:
        reasons = "; ".join(sorted({one.reason or one.state for one in records})) or "no trial ran"
        raise NothingFeasibleError(f"none of {len(records)} trials is complete: {reasons}")
    comparison = _comparison(part, finished, finals, workers, announce) if finals else None
    winner, stock = _chosen(part, records, comparison)
    preparation, study = finished.teacher.preparation, finished.study
    winner_path = export_chosen(part, preparation, study, winner, "best")
    stock_path = winner_path if stock and stock.key == winner.key else None
    if stock and stock.key != winner.key:
        stock_path = export_chosen(part, preparation, study, stock, "best_stock")
    keys = {one.key for one in part.target.feasible}
    return Outcome(
        plan=part,
        preparation=preparation,
        records=records,
        winner=winner,
        winner_path=winner_path,
        stock=stock,
        stock_path=stock_path,
        comparison=comparison,
        agreements=agreements(records, finals),
        screened={key: loss for key, loss in finished.losses.items() if key in keys},
        seconds=time.monotonic() - finished.started,
    )


def _comparison(
    part: Plan, finished: Finished, finals: list[FinalRecord], workers: Workers, announce: Listener
) -> Comparison:
    windows = {one.name: found for one in finals if (found := final_windows(part, one)) is not None}
    shape = part.target.shape
    teacher = finished.teacher.windows, shape.parameters(shape.full), str(loads_in(shape, shape.full))
    comparison = compare(finals, windows, *teacher)
    return with_test_readings(part, comparison, workers, announce)


def _chosen(plan: Plan, records: list[TrialRecord], comparison: Comparison | None) -> tuple[Chosen, Chosen | None]:
    """The winner and the best stock candidate, of the finals or, without a final stage, of the trials."""
    if comparison is None:
        winner, stock = best(records), best_stock(records)
        assert winner is not None, "a budget without a complete trial has no outcome"
        return _of_trial(plan, winner), _of_trial(plan, stock) if stock else None
    first = _of_final(plan, comparison, comparison.winner, comparison.verdict)
    if comparison.stock in (None, comparison.winner):
        return first, first if comparison.stock else None
    return first, _of_final(plan, comparison, comparison.stock, comparison.against_winner(comparison.stock))


def _of_trial(plan: Plan, record: TrialRecord) -> Chosen:
    return Chosen(record, plan.recipe.tokens, 0, trial_student(plan, record.architecture))


def _of_final(plan: Plan, comparison: Comparison, record: FinalRecord, verdict: str) -> Chosen:
    excess = excess_of(comparison, record.architecture.key)
    other_text = excess.sentence if excess else ""
    return Chosen(record, plan.recipe.tokens, plan.final_tokens, final_student(plan, record), verdict, other_text)
