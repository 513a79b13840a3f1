"""The plan of a search as a table for the terminal."""

from __future__ import annotations

from rich.table import Table

from nas.planning.forecast import summary
from nas.planning.plan import Plan


def plan_table(plan: Plan) -> Table:
    """One line for each fact of the plan."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path stays whole
    for what, value in summary(plan):
        table.add_row(f"[bold]{what}[/bold]", value)
    return table
