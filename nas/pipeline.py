"""One search from its plan to an exported winner."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from nas.choosing.agreement import agreements
from nas.choosing.comparison import Comparison, compare
from nas.choosing.outcome import Chosen, Outcome
from nas.choosing.selection import best, best_stock, weighed
from nas.display.final_progress import FinalProgress
from nas.display.trial_progress import Progress, clock
from nas.planning.errors import NothingFeasibleError
from nas.planning.plan import Plan, with_neuron_values
from nas.report.overview import write_overview
from nas.report.plots import plot_importance
from nas.report.report_folder import write_report
from nas.running.tasks import Prepared
from nas.running.tune_run import prepare_remotely, run_trials
from nas.running.workers import Workers
from nas.stages.exports import export_chosen
from nas.stages.finish import open_stage, run_stage, windows_of
from nas.stages.measure import first_candidates, run_screening, within_latency
from nas.stages.test_text import with_test_readings
from nas.study.records import FinalRecord, TrialRecord
from nas.study.study import SCREENED, SearchStudy
from nas.tracking.listener import Teller
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.trial import Preparation

KEPT_STUDENTS = 3  # weights of the best complete trials stay on disk; those of the others go as the search goes


def conduct(plan: Plan, workers: Workers, console: Console, command: str) -> list[Outcome]:
    """Prepare, run what is left of the study, export the winner of every budget, tell MLflow.

    Raises InputError for wrong inputs, NothingFeasibleError when a budget has no complete trial; the winners of the
    others are exported all the same.
    """
    started = time.monotonic()
    with _only_driver(plan):
        console.print("preparing teacher, text, importance scores and targets ...")
        prepared = prepare_remotely(plan, workers, partial(_say, console, started))
        preparation = prepared.preparation
        console.print(_prepared(preparation))
        if prepared.neuron_values is not None:
            plan = with_neuron_values(plan, prepared.neuron_values)
        study = open_study(plan, preparation)
        if plan.times_candidates:
            plan = within_latency(plan, study, workers, console)
            study = open_study(plan, preparation)
        with Teller(plan, study, console) as teller, ThreadPoolExecutor(1) as aside:
            teller.started(preparation, command)
            drawn = aside.submit(lambda: teller.files([_plot_scores(prepared, plan)], "report"))
            _run(plan, study, workers, teller, console)
            drawn.result()  # begun before, but trials need not wait for it
            finals = _finals(plan, study, workers, teller, console)

            def conclude(part: Plan) -> Outcome:
                outcome = _conclude(part, study, workers, prepared, finals, started, command, console)
                outcome = replace(outcome, experiment_id=teller.tracker.experiment_id)
                teller.files(write_report(outcome), f"report/{part.part}".rstrip("/"))
                return outcome

            outcomes = _each(plan.parts, conclude)
            if len(outcomes) > 1:
                teller.files(write_overview(plan, outcomes, study.records()), "report")
            teller.finished(outcomes)
        return outcomes


def _each(parts: Sequence[Plan], conclude: Callable[[Plan], Outcome]) -> list[Outcome]:
    """The outcomes of all ``parts``. Raises NothingFeasibleError for those that have none when all others are done."""
    found, nothing = [], []
    for part in parts:
        try:
            found.append(conclude(part))
        except NothingFeasibleError as error:
            nothing.append(f"budget {part.target.budget.text}: {error}" if part.part else str(error))
    if nothing:
        raise NothingFeasibleError("; ".join(nothing))
    return found


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
        budgets=plan.target.budgets,
        objectives=plan.objectives,
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


def _say(console: Console, started: float, message: str) -> None:
    console.print(f"[{clock(time.monotonic() - started)}] {message}", markup=False, soft_wrap=True)


def _prepared(preparation: Preparation) -> str:
    scores = "found in the cache" if preparation.importance_cached else "computed"
    loss = f"teacher's validation loss {preparation.teacher_loss:.4f}"
    return f"importance scores {scores}; text: {preparation.corpus}; {loss}; prepared in {preparation.seconds:.0f} s"


def _run(plan: Plan, study: SearchStudy, workers: Workers, teller: Teller, console: Console) -> None:
    left_over = study.requeue()
    if left_over:
        console.print(f"{left_over} unfinished trials of an earlier run go on from their checkpoints")
    run_screening(plan, study, workers, console)
    screened = study.kept(SCREENED)
    study.queue(one for part in plan.parts for one in first_candidates(part, screened)[: part.trials])
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
            run_trials(plan, study, workers, changed)
    except BaseException:
        study.requeue()
        raise


def _drop_weights(plan: Plan, records: list[TrialRecord]) -> None:
    """Keep the students that can still be exported or go on; a trial of 260M parameters leaves a gigabyte.

    Of a baseline that was stopped early, the checkpoint: the final stage goes on from it.
    """
    kept: set[Architecture] = set()
    for part in plan.parts:
        own = of_part(part, records)
        ranked, stock = weighed(own, plan.objectives), best_stock(own)
        kept |= {one.architecture for one in ranked[: max(KEPT_STUDENTS, plan.settings.finalists)]}
        kept |= {*part.baselines.values(), *([stock.architecture] if stock else [])}
    for one in records:
        if one.state != "RUNNING" and one.architecture not in kept:
            shutil.rmtree(plan.folder / "trials" / one.architecture.key, ignore_errors=True)


def of_part(part: Plan, records: list[TrialRecord]) -> list[TrialRecord]:
    """Those that are candidates of the budget of ``part``."""
    return [one for one in records if one.parameters in part.target.budget]


def _finals(plan: Plan, study: SearchStudy, workers: Workers, teller: Teller, console: Console) -> list[FinalRecord]:
    """What the final stages of all budgets came to, run as one; nothing where there is none."""
    if not plan.settings.finalists:
        return []
    records = study.records()
    having = [(part, own) for part in plan.parts if best(own := of_part(part, records)) is not None]
    stage = [one for part, own in having for one in open_stage(part, study, own)]
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
        return run_stage(plan, study, stage, workers, changed)


def _conclude(
    part: Plan,
    study: SearchStudy,
    workers: Workers,
    prepared: Prepared,
    finals: list[FinalRecord],
    started: float,
    command: str,
    console: Console,
) -> Outcome:
    """Choose, read test text, and export, for one budget."""
    records = of_part(part, study.records())
    if best(records) is None:
        reasons = "; ".join(sorted({one.reason or one.state for one in records})) or "no trial ran"
        raise NothingFeasibleError(f"none of {len(records)} trials completed: {reasons}")
    own = [one for one in finals if one.parameters in part.target.budget]
    comparison = _compared(part, own, prepared, workers, console) if own else None
    winner, stock = _chosen(part, records, comparison)
    winner_path = export_chosen(part, prepared.preparation, study, winner, "best", command)
    stock_path = winner_path if stock and stock.key == winner.key else None
    if stock and stock.key != winner.key:
        stock_path = export_chosen(part, prepared.preparation, study, stock, "best_stock", command)
    keys = {one.key for one in part.target.feasible}
    return Outcome(
        plan=part,
        preparation=prepared.preparation,
        records=records,
        winner=winner,
        winner_path=winner_path,
        stock=stock,
        stock_path=stock_path,
        comparison=comparison,
        agreements=agreements(records, own),
        screened={key: loss for key, loss in study.kept(SCREENED).items() if key in keys},
        seconds=time.monotonic() - started,
    )


def _compared(
    part: Plan, finals: list[FinalRecord], prepared: Prepared, workers: Workers, console: Console
) -> Comparison:
    windows = {one.name: found for one in finals if (found := windows_of(part, one)) is not None}
    shape = part.target.shape
    comparison = compare(finals, windows, prepared.teacher, shape.parameters(shape.full))
    return with_test_readings(part, comparison, workers, console)


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


def _plot_scores(prepared: Prepared, plan: Plan) -> Path:
    scores = prepared.scores
    (plan.folder / "report").mkdir(exist_ok=True)
    file = plan.folder / "report" / "importance.png"
    return plot_importance(scores.layers, prepared.shares, scores.heads, scores.mlp, file)
