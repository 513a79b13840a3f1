"""The plan of a search for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas.planning.forecast import summary
from nas.planning.plan import Plan

PLACES = ("study", "output")  # lines with a path, which a person copies


def print_plan(plan: Plan, console: Console) -> None:
    """Print one line for each fact of the plan. A path is never broken; the terminal breaks what is too long."""
    facts = summary(plan)
    width = max(len(what) for what, _ in facts)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, min_width=width, style="bold")
    table.add_column()
    for what, value in facts:
        if what not in PLACES:
            table.add_row(what, Text(value))
    console.print(table)
    for what, value in facts:
        if what in PLACES:
            console.print(Text.assemble((f"{what:<{width}}", "bold"), f"  {value}"), soft_wrap=True)
