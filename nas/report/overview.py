"""The winners of a search for several budgets, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from nas.choosing.outcome import Outcome
from nas.planning.plan import Plan
from nas.report.plots import plot_pareto
from nas.study.records import TrialRecord

HEADINGS = ("budget", "winner", "parameters", "share", "val loss", "best stock", "its val loss")
LEFT = ("budget", "winner", "best stock")


def overview_table(outcomes: Sequence[Outcome]) -> Table:
    """The winner of every budget, for the terminal."""
    table = Table(title="all budgets", header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    table.title_justify = "left"
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    for outcome in outcomes:
        table.add_row(*map(Text, _cells(outcome)))
    return table


def write_overview(plan: Plan, outcomes: Sequence[Outcome], records: Sequence[TrialRecord]) -> list[Path]:
    """Write the table as Markdown, and plot the losses of all ``records`` against their sizes. Returns the files."""
    folder = plan.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    rules = (":---" if heading in LEFT else "---:" for heading in HEADINGS)
    lines = [f"# {plan.study}", "", _line(HEADINGS), _line(rules), *(_line(_cells(one)) for one in outcomes)]
    (folder / "budgets.md").write_text("\n".join(lines) + "\n", "utf-8")
    loss = outcomes[0].preparation.teacher_loss
    return [folder / "budgets.md", plot_pareto(records, folder / "pareto.png", loss)]


def _cells(outcome: Outcome) -> list[str]:
    shape, winner, stock = outcome.plan.target.shape, outcome.winner, outcome.stock
    share = winner.record.parameters / shape.parameters(shape.full)
    first = [outcome.plan.target.budget.text, winner.key, f"{winner.record.parameters:,}", f"{share:.1%}"]
    return [*first, f"{winner.val_loss:.4f}", stock.key if stock else "", f"{stock.val_loss:.4f}" if stock else ""]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
