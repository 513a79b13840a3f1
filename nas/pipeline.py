"""One search from its plan to an exported winner."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from nas.candidates import informed
from nas.errors import NothingFeasibleError
from nas.exports import export_record
from nas.plan import Plan
from nas.plots import plot_importance, plot_losses, plot_pareto, plot_sizes
from nas.progress import Progress
from nas.records import TrialRecord
from nas.report import csv_text, markdown_table
from nas.runner import prepare_remotely, run_trials
from nas.selection import best, best_stock, counts, ranking
from nas.study import SearchStudy
from nas.telling import Teller
from search_spaces.errors import InputError
from trials.importance import ImportanceScores
from trials.trial import Preparation

KEPT_STUDENTS = 3  # weights of the best complete trials stay on disk; those of the others go as the search goes


@dataclass(frozen=True)
class Outcome:
    """What a search found. Paths are exported checkpoints; ``undelivered`` counts what MLflow has yet to be told."""

    plan: Plan
    preparation: Preparation
    records: list[TrialRecord]
    winner: TrialRecord
    winner_path: Path
    stock: TrialRecord | None
    stock_path: Path | None
    seconds: float
    undelivered: int = 0


def conduct(plan: Plan, console: Console, command: str) -> Outcome:
    """Prepare, run what is left of the study, export the winner, and tell MLflow. Ray must be connected.

    Raises InputError for wrong inputs, NothingFeasibleError when no trial completed.
    """
    started = time.monotonic()
    with _only_driver(plan):
        console.print("preparing teacher, text, importance scores and targets ...")
        preparation, scores = prepare_remotely(plan)
        console.print(_prepared(preparation))
        study = open_study(plan, preparation)
        with Teller(plan, study, console) as teller:
            teller.started(preparation, command)
            teller.files([_plot_scores(scores, plan)], "report")
            _run(plan, study, teller, console)
            outcome = _export(plan, preparation, study, started, command)
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
    if plan.settings.sampler != "exhaustive":
        study.queue(informed(plan.target.shape, plan.target.feasible)[: plan.trials])
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
    """Keep the students that can still be exported; a trial of 260M parameters leaves a gigabyte."""
    ranked, stock = ranking(records), best_stock(records)
    kept = {one.architecture.key for one in ranked[:KEPT_STUDENTS]} | ({stock.architecture.key} if stock else set())
    for one in records:
        if one.state != "RUNNING" and one.architecture.key not in kept:
            shutil.rmtree(plan.folder / "trials" / one.architecture.key, ignore_errors=True)


def _export(plan: Plan, preparation: Preparation, study: SearchStudy, started: float, command: str) -> Outcome:
    records = study.records()
    winner, stock = best(records), best_stock(records)
    if winner is None:
        reasons = "; ".join(sorted({one.reason or one.state for one in records})) or "no trial ran"
        raise NothingFeasibleError(f"none of {len(records)} trials completed: {reasons}")
    winner_path = export_record(plan, preparation, study, winner, "best", command)
    stock_path = winner_path if stock == winner else None
    if stock and stock != winner:
        stock_path = export_record(plan, preparation, study, stock, "best_stock", command)
    seconds = time.monotonic() - started
    return Outcome(plan, preparation, records, winner, winner_path, stock, stock_path, seconds)


def _plot_scores(scores: ImportanceScores, plan: Plan) -> Path:
    (plan.folder / "report").mkdir(exist_ok=True)
    file = plan.folder / "report" / "importance.png"
    return plot_importance(scores.layers, scores.hidden, scores.heads, scores.mlp, file)


def write_report(outcome: Outcome) -> list[Path]:
    """The table as Markdown and CSV and the plots, in the folder ``report`` of the study. Returns the files."""
    folder, records = outcome.plan.folder / "report", outcome.records
    teacher, loss = (
        outcome.plan.target.shape.parameters(outcome.plan.target.shape.full),
        outcome.preparation.teacher_loss,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(markdown_table(records, teacher), "utf-8")
    (folder / "results.csv").write_text(csv_text(records, teacher), "utf-8")
    plots = [
        plot_losses(records, folder / "losses.png", loss),
        plot_pareto(records, folder / "pareto.png", loss),
        plot_sizes(records, folder / "sizes.png"),
    ]
    return [folder / "results.md", folder / "results.csv", *plots]


def document(outcome: Outcome) -> dict[str, Any]:
    """The result as one JSON document."""
    plan = outcome.plan
    return {
        "study": plan.study,
        "model": plan.settings.model,
        "budget": {
            "text": plan.settings.budget,
            "minimum": plan.target.budget.minimum,
            "maximum": plan.target.budget.maximum,
        },
        "teacher": {
            "params": plan.target.shape.parameters(plan.target.shape.full),
            "val_loss": outcome.preparation.teacher_loss,
        },
        "best": _described(outcome.winner, outcome.winner_path),
        "best_stock": _described(outcome.stock, outcome.stock_path) if outcome.stock and outcome.stock_path else None,
        "trials": counts(outcome.records),
        "seconds": round(outcome.seconds, 1),
    }


def _described(record: TrialRecord, path: Path) -> dict[str, Any]:
    return {
        "architecture": record.architecture.to_dict(),
        "params": record.parameters,
        "val_loss": record.val_loss,
        "stock": record.stock,
        "path": str(path),
    }
