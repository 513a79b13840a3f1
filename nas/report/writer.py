"""The listener that writes the folder ``report`` of a study: the result as tables and plots."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nas.choosing.agreement import lines
from nas.choosing.comparison import UNEQUAL, Comparison
from nas.choosing.outcome import Outcome
from nas.report.final_report import (
    comparison_csv,
    comparison_markdown,
    on_test_markdown,
    on_test_notes,
    plot_finals,
)
from nas.report.front_report import front_markdown, plot_front
from nas.report.generality_report import TITLE, generality_markdown
from nas.report.overview import write_overview
from nas.report.plots import plot_agreement, plot_importance, plot_losses, plot_pareto, plot_sizes
from nas.report.screening_report import plot_screening, reordering, screening_csv
from nas.report.trial_report import csv_text, markdown_table
from nas.stages.events import (
    BudgetConcluded,
    Event,
    FilesWritten,
    Listener,
    SearchConcluded,
    SearchPrepared,
    SearchStopped,
)

REPORT = "report"


class ReportWriter:
    """Writes the report of each budget when it is concluded, and announces the files.

    The plot of the importance scores is drawn in a thread, because trials need not wait for it.
    """

    def __init__(self, announce: Listener) -> None:
        self.announce = announce
        self._thread = ThreadPoolExecutor(1)
        self._drawing: Future[None] | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case SearchPrepared():
                self._drawing = self._thread.submit(self._draw_importance, event)
            case BudgetConcluded():
                folder = f"{REPORT}/{event.outcome.plan.part}".rstrip("/")
                self.announce(FilesWritten(write_report(event.outcome), folder))
            case SearchConcluded():
                if len(event.outcomes) > 1:
                    files = write_overview(event.plan, event.outcomes, event.records)
                    self.announce(FilesWritten(files, REPORT))
                self._close()
            case SearchStopped():
                self._close()

    def _draw_importance(self, event: SearchPrepared) -> None:
        folder, scores = event.plan.folder / REPORT, event.teacher.scores
        folder.mkdir(exist_ok=True)
        file = plot_importance(scores.layers, event.teacher.shares, scores.heads, scores.mlp, folder / "importance.png")
        self.announce(FilesWritten([file], REPORT))

    def _close(self) -> None:
        """Wait for the thread. Raises what it has raised."""
        self._thread.shutdown()
        if self._drawing is not None:
            self._drawing.result()


def write_report(outcome: Outcome) -> list[Path]:
    """Write the tables as Markdown and CSV, and the plots. Returns the files."""
    folder, records, loss = outcome.plan.results / REPORT, outcome.records, outcome.preparation.teacher_loss
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"results.md": results(outcome), "results.csv": csv_text(records, outcome.teacher_parameters)}
    if outcome.comparison:
        tables["final.csv"] = comparison_csv(outcome.comparison)
    if outcome.screened:
        target = outcome.plan.target
        tables["screening.csv"] = screening_csv(outcome.screened, target.feasible, target.shape, records)
    for name, text in tables.items():
        (folder / name).write_text(text, "utf-8")
    winner = outcome.winner.record.architecture
    plots = [plot_losses(records, folder / "losses.png", loss, winner)] if outcome.plan.recipe.tokens else []
    plots += [
        plot_pareto(records, folder / "pareto.png", loss, winner, _screened_sizes(outcome)),
        plot_sizes(records, folder / "sizes.png", winner),
    ]
    if outcome.comparison:
        plots.append(plot_finals(outcome.comparison, folder / "final.png"))
    if outcome.agreements:
        plots.append(plot_agreement(outcome.agreements, folder / "rank_agreement.png"))
    if outcome.screened:
        plots.append(plot_screening(outcome.screened, records, folder / "screening.png", winner))
    objectives = outcome.plan.objectives
    if len(objectives) > 1:
        plots.append(plot_front(records, objectives, folder / "front.png", winner))
    return [*(folder / name for name in tables), *plots]


def _screened_sizes(outcome: Outcome) -> list[tuple[int, float]]:
    """The parameters of each architecture that was screened, and its loss there."""
    target = outcome.plan.target
    measured = ((one, outcome.screened.get(one.key)) for one in target.feasible)
    return [(target.shape.parameters(one), loss) for one, loss in measured if loss is not None]


def results(outcome: Outcome) -> str:
    """The text of results.md."""
    parts = [f"# {' '.join([outcome.plan.study, outcome.plan.part]).strip()}"]
    if outcome.comparison:
        texts = "The loss is the mean over validation texts. " if outcome.preparation.teacher_losses else ""
        parts += ["## Final comparison", comparison_markdown(outcome.comparison).rstrip()]
        parts += [f"{texts}{UNEQUAL[0].upper()}{UNEQUAL[1:]}."]
        parts += ["\n".join(f"- {note}" for note in outcome.comparison.notes)]
        parts += _on_test_text(outcome.comparison)
        if general := generality_markdown(outcome.comparison).rstrip():
            parts += ["## On other text", f"{TITLE[0].upper()}{TITLE[1:]}.", general]
    objectives = outcome.plan.objectives
    if len(objectives) > 1:
        parts += ["## Pareto front of the trials", front_markdown(outcome.records, objectives).rstrip()]
    parts += ["## Trials", markdown_table(outcome.records, outcome.teacher_parameters).rstrip()]
    stopped = any(one.state == "PRUNED" for one in outcome.records)
    reordered = reordering(outcome.screened, outcome.records, outcome.winner.record.architecture)
    agreement = [f"- {line}" for line in [*reordered, *lines(outcome.agreements, stopped)]]
    if agreement:
        parts += ["## How well did early rankings agree with late ones?", "\n".join(agreement)]
    return "\n\n".join(parts) + "\n"


def _on_test_text(comparison: Comparison) -> list[str]:
    table = on_test_markdown(comparison).rstrip()
    return ["## On test text", table, "\n".join(f"- {note}" for note in on_test_notes(comparison))] if table else []
