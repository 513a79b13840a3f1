"""The folder ``report`` of a study: what was found, as tables and pictures."""

from __future__ import annotations

from pathlib import Path

from nas.choosing.agreement import lines
from nas.choosing.comparison import UNEQUAL, Comparison
from nas.choosing.outcome import Outcome
from nas.report.final_report import comparison_csv, comparison_markdown, on_test_markdown, on_test_notes
from nas.report.front_report import front_markdown, plot_front
from nas.report.plots import plot_agreement, plot_losses, plot_pareto, plot_sizes
from nas.report.screening_report import plot_screening, screening_csv
from nas.report.trial_report import csv_text, markdown_table


def write_report(outcome: Outcome) -> list[Path]:
    """Write the tables as Markdown and CSV, and the plots. Returns the files."""
    folder, records, loss = outcome.plan.results / "report", outcome.records, outcome.preparation.teacher_loss
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"results.md": results(outcome), "results.csv": csv_text(records, teacher_parameters(outcome))}
    if outcome.comparison:
        tables["final.csv"] = comparison_csv(outcome.comparison)
    if outcome.screened:
        target = outcome.plan.target
        tables["screening.csv"] = screening_csv(outcome.screened, target.feasible, target.shape, records)
    for name, text in tables.items():
        (folder / name).write_text(text, "utf-8")
    winner = outcome.winner.record.architecture
    plots = [
        plot_losses(records, folder / "losses.png", loss, winner),
        plot_pareto(records, folder / "pareto.png", loss, winner),
        plot_sizes(records, folder / "sizes.png", winner),
        plot_agreement(outcome.agreements, folder / "rank_agreement.png"),
    ]
    if outcome.screened:
        plots.append(plot_screening(outcome.screened, records, folder / "screening.png", winner))
    objectives = outcome.plan.objectives
    if len(objectives) > 1:
        plots.append(plot_front(records, objectives, folder / "front.png", winner))
    return [*(folder / name for name in tables), *plots]


def results(outcome: Outcome) -> str:
    """The text of results.md."""
    parts = [f"# {' '.join([outcome.plan.study, outcome.plan.part]).strip()}"]
    if outcome.comparison:
        texts = "The loss is the mean over validation texts. " if outcome.preparation.teacher_losses else ""
        parts += ["## Final comparison", comparison_markdown(outcome.comparison).rstrip()]
        parts += [f"{texts}{UNEQUAL[0].upper()}{UNEQUAL[1:]}."]
        parts += ["\n".join(f"- {note}" for note in outcome.comparison.notes)]
        parts += _on_test_text(outcome.comparison)
    objectives = outcome.plan.objectives
    if len(objectives) > 1:
        parts += ["## Pareto front of the trials", front_markdown(outcome.records, objectives).rstrip()]
    parts += ["## Trials", markdown_table(outcome.records, teacher_parameters(outcome)).rstrip()]
    stopped = any(one.state == "PRUNED" for one in outcome.records)
    agreement = [f"- {line}" for line in lines(outcome.agreements, stopped)]
    if agreement:
        parts += ["## Could the cheap comparison be trusted?", "\n".join(agreement)]
    return "\n\n".join(parts) + "\n"


def _on_test_text(comparison: Comparison) -> list[str]:
    table = on_test_markdown(comparison).rstrip()
    return ["## On test text", table, "\n".join(f"- {note}" for note in on_test_notes(comparison))] if table else []


def teacher_parameters(outcome: Outcome) -> int:
    """Of the teacher, which shares are of."""
    shape = outcome.plan.target.shape
    return shape.parameters(shape.full)
