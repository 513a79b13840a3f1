"""One search from its plan to an exported winner."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from nas.agreement import agreements
from nas.comparison import Comparison, compare
from nas.errors import NothingFeasibleError
from nas.exports import export_chosen
from nas.final_progress import FinalProgress
from nas.final_readings import with_test_readings
from nas.finals import open_stage, run_stage, windows_of
from nas.outcome import Chosen, Outcome
from nas.plan import Plan
from nas.plots import plot_importance
from nas.progress import Progress
from nas.records import FinalRecord, TrialRecord
from nas.report_folder import write_report
from nas.runner import Prepared, prepare_remotely, run_trials
from nas.screening import first_candidates, run_screening
from nas.selection import best, best_stock, ranking
from nas.study import SearchStudy
from nas.telling import Teller
from search_spaces.errors import InputError
from trials.importance import ImportanceScores
from trials.trial import Preparation

KEPT_STUDENTS = 3  # weights of the best complete trials stay on disk; those of the others go as the search goes


def conduct(plan: Plan, console: Console, command: str) -> Outcome:
    """Prepare, run what is left of the study, export the winner, and tell MLflow. Ray must be connected.

    Raises InputError for wrong inputs, NothingFeasibleError when no trial completed.
    """
    started = time.monotonic()
    with _only_driver(plan):
        console.print("preparing teacher, text, importance scores and targets ...")
        prepared = prepare_remotely(plan)
        preparation, scores, _ = prepared
        console.print(_prepared(preparation))
        study = open_study(plan, preparation)
        with Teller(plan, study, console) as teller:
            teller.started(preparation, command)
            teller.files([_plot_scores(scores, plan)], "report")
            _run(plan, study, teller, console)
            comparison = _finals(plan, study, prepared, teller, console)
            if comparison:
                comparison = with_test_readings(plan, comparison, console)
            outcome = _export(plan, preparation, study, comparison, started, command)
            teller.files(write_report(outcome), "report")
            teller.finished(outcome)
        return outcome


def open_study(plan: Plan, preparation: Preparation) -> SearchStudy:
    """The study of ``plan``, new or continued. Raises InputError when it was made with other settings."""
    facts = {"teacher": preparation.fingerprint, "text": preparation.corpus_fingerprint}
    return SearchStudy(
        plan.storage,
        plan.study,
        plan.target.space,
        plan.target.feasible,
        sampler=plan.settings.sampler,
        seed=plan.settings.seed,
        identity={**plan.identity, **facts},
    )


@contextmanager
def _only_driver(plan: Plan) -> Iterator[None]:
    """One driver a study: a second one would take the trials of the first for abandoned."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / "driver.lock").acquire(blocking=False):
            yield
    except Timeout as error:
        raise InputError(
            f"study {plan.study!r}: another search is running it in {plan.folder}; wait for it, or give another --study"
        ) from error


def _prepared(preparation: Preparation) -> str:
    scores = "found in the cache" if preparation.importance_cached else "computed"
    loss = f"teacher's validation loss {preparation.teacher_loss:.4f}"
    return f"importance scores {scores}; text: {preparation.corpus}; {loss}; prepared in {preparation.seconds:.0f} s"


def _run(plan: Plan, study: SearchStudy, teller: Teller, console: Console) -> None:
    left_over = study.requeue()
    if left_over:
        console.print(f"{left_over} unfinished trials of an earlier run go on from their checkpoints")
    run_screening(plan, study, console)
    study.queue(first_candidates(plan, study.sampler.screened)[: plan.trials])
    done = study.finished()
    if done:
        console.print(f"study {plan.study}: {done} of {plan.trials} trials are done already")
    progress = Progress(console, plan)

    def changed(number: int) -> None:
        records = study.records()
        teller.changed(records, number)
        _drop_weights(plan, records)
        progress.update(records, number)

    try:
        with progress.shown():
            run_trials(plan, study, changed)
    except BaseException:
        study.requeue()
        raise


def _drop_weights(plan: Plan, records: list[TrialRecord]) -> None:
    """Keep the students that can still be exported or go on; a trial of 260M parameters leaves a gigabyte.

    Of a baseline that was stopped early, the checkpoint: the final stage goes on from it.
    """
    ranked, stock = ranking(records), best_stock(records)
    kept = {one.architecture for one in ranked[: max(KEPT_STUDENTS, plan.settings.finalists)]}
    kept |= {*plan.baselines.values(), *([stock.architecture] if stock else [])}
    for one in records:
        if one.state != "RUNNING" and one.architecture not in kept:
            shutil.rmtree(plan.folder / "trials" / one.architecture.key, ignore_errors=True)


def _finals(plan: Plan, study: SearchStudy, prepared: Prepared, teller: Teller, console: Console) -> Comparison | None:
    """The final stage, or None where there is none."""
    records = study.records()
    if best(records) is None:
        reasons = "; ".join(sorted({one.reason or one.state for one in records})) or "no trial ran"
        raise NothingFeasibleError(f"none of {len(records)} trials completed: {reasons}")
    if not plan.settings.finalists:
        return None
    stage = open_stage(plan, study, records)
    for one in stage:
        teller.final_changed(one)
    done = sum(one.ended is not None for one in stage)
    if done:
        console.print(f"study {plan.study}: {done} of {len(stage)} finals are done already")
    progress = FinalProgress(console, plan, stage)

    def changed(finals: list[FinalRecord], one: FinalRecord) -> None:
        teller.final_changed(one)
        progress.update_finals(finals, one)

    with progress.shown():
        finals = run_stage(plan, study, stage, changed)
    windows = {one.name: found for one in finals if (found := windows_of(plan, one)) is not None}
    shape = plan.target.shape
    return compare(finals, windows, prepared.teacher, shape.parameters(shape.full))


def _export(
    plan: Plan,
    preparation: Preparation,
    study: SearchStudy,
    comparison: Comparison | None,
    started: float,
    command: str,
) -> Outcome:
    records = study.records()
    winner, stock = _chosen(plan, records, comparison)
    winner_path = export_chosen(plan, preparation, study, winner, "best", command)
    stock_path = winner_path if stock and stock.key == winner.key else None
    if stock and stock.key != winner.key:
        stock_path = export_chosen(plan, preparation, study, stock, "best_stock", command)
    found = agreements(records, comparison.finals if comparison else ())
    seconds = time.monotonic() - started
    return Outcome(
        plan=plan,
        preparation=preparation,
        records=records,
        winner=winner,
        winner_path=winner_path,
        stock=stock,
        stock_path=stock_path,
        comparison=comparison,
        agreements=found,
        screened=study.screened(),
        seconds=seconds,
    )


def _chosen(plan: Plan, records: list[TrialRecord], comparison: Comparison | None) -> tuple[Chosen, Chosen | None]:
    """The winner and the best stock candidate: of the finals, or where there are none of the trials."""
    if comparison is None:
        winner, stock = best(records), best_stock(records)
        assert winner is not None, "a search without a complete trial has ended before"
        return Chosen.trial(plan, winner), Chosen.trial(plan, stock) if stock else None
    first = Chosen.final(plan, comparison.winner, comparison.verdict)
    if comparison.stock in (None, comparison.winner):
        return first, first if comparison.stock else None
    return first, Chosen.final(plan, comparison.stock, comparison.against_winner(comparison.stock))


def _plot_scores(scores: ImportanceScores, plan: Plan) -> Path:
    (plan.folder / "report").mkdir(exist_ok=True)
    file = plan.folder / "report" / "importance.png"
    return plot_importance(scores.layers, scores.hidden, scores.heads, scores.mlp, file)
