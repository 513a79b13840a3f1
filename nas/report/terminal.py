"""The result of a search for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from nas.choosing.agreement import ENOUGH, lines
from nas.choosing.comparison import Comparison
from nas.choosing.outcome import Outcome
from nas.display.console import show
from nas.report.final_report import comparison_table, on_test_table
from nas.report.front_report import front_table
from nas.report.generality_report import generality_table
from nas.report.overview import overview_table
from nas.report.screening_report import reordering
from nas.report.trial_report import terminal_table
from search_spaces.budget import BYTES
from search_spaces.stored_size import stored_bytes

# Columns that a narrow terminal does without, the least needed first.
LESS_NEEDED = {
    "final": ("share", "tokens", "loads in", "parameters"),
    "test": ("parameters",),
    "budgets": ("its val loss", "best stock", "share", "parameters"),
    "trials": ("trial", "loads in", "ppl", "zero-shot", "time", "share", "tokens"),
}


def print_result(outcomes: Sequence[Outcome], console: Console, mlflow_lines: Sequence[str]) -> None:
    """Print the tables and the winner of every budget; ``mlflow_lines`` say how to open the runs in MLflow."""
    whole = [_print_outcome(outcome, console) for outcome in outcomes]
    if len(outcomes) > 1:
        console.print()
        whole.append(show(overview_table(outcomes), console, LESS_NEEDED["budgets"]))
        console.print()
    say = partial(console.print, soft_wrap=True)  # a path or a command must not be broken
    for place, line in enumerate(mlflow_lines):
        say(f"            {line}" if place else f"see it:     {line}")
    say(f"report:     {outcomes[0].plan.folder / 'report' / 'report.html'}")
    if not all(whole):
        say("            results.md there has the columns that do not fit on this screen")


def _print_outcome(outcome: Outcome, console: Console) -> bool:
    """The final table first: what it chose is the result. The trials that led to it follow.

    Returns whether all columns are there.
    """
    rows = outcome.comparison.rows if outcome.comparison else ()
    roles = {row.architecture: row.roles[0] for row in rows} if rows else None
    order = ", ranked before the finals" if rows else ""
    title = f"trials of study {outcome.plan.study}, budget {outcome.plan.target.budget.text}{order}"
    tables = [*_final_tables(outcome.comparison)] if outcome.comparison else []
    tables.append((terminal_table(outcome.records, outcome.teacher_parameters, title, roles), LESS_NEEDED["trials"]))
    if len(outcome.plan.objectives) > 1:
        tables.append((front_table(outcome.records, outcome.plan.objectives), ()))
    console.print()
    whole = True
    for table, optional in tables:
        whole = show(table, console, optional) and whole
        console.print()
    _print_winner(outcome, console)
    console.print()
    _print_agreement(outcome, console)
    console.print()
    return whole


def _final_tables(comparison: Comparison) -> Iterator[tuple[Table, Sequence[str]]]:
    """The tables of the final stage, and what a narrow terminal does without. Of many texts the last ones go first."""
    yield comparison_table(comparison), LESS_NEEDED["final"]
    if (tests := on_test_table(comparison)) is not None:
        texts = [str(one.header) for one in tests.columns[4:]]
        yield tests, (*LESS_NEEDED["test"], *reversed(texts))
    if (general := generality_table(comparison)) is not None:
        texts = [str(one.header) for one in general.columns[4:]]
        yield general, tuple(reversed(texts))


def _print_agreement(outcome: Outcome, console: Console) -> None:
    found = reordering(outcome.screened, outcome.records, outcome.winner.record.architecture)
    if any(one.has_interval for one in outcome.agreements):
        found += lines(outcome.agreements, any(one.state == "PRUNED" for one in outcome.records))
    elif outcome.agreements:
        found.append(f"too few architectures were trained to the end to tell more; {ENOUGH} would do")
    if found:
        console.print("how well did early rankings agree with late ones?")
    for line in found:
        console.print(line, style="dim", soft_wrap=not console.is_terminal)


def _print_winner(outcome: Outcome, console: Console) -> None:
    winner, say = outcome.winner, partial(console.print, soft_wrap=True)
    say(f"[bold]winner[/bold]      {winner.key}: {size_and_loss(outcome)}")
    say(f"            {sizes_beside_teacher(outcome)}")
    say(f"            {outcome.winner_path}")
    say(f"            loads in {winner.record.loads_in}")
    if len(outcome.plan.objectives) > 1:
        others = ", ".join(outcome.plan.objectives[1:])
        say(f"            it has the smallest loss; the Pareto front above shows what less {others} costs")
    for note in outcome.comparison.notes if outcome.comparison else ():
        say(f"            {note}")
    if outcome.stock and outcome.stock.key != winner.key:
        loss = f"validation loss {outcome.stock.val_loss:.4f}"
        say(f"[bold]best stock[/bold]  {outcome.stock.key}: plain transformers loads it; {loss}")
        say(f"            {outcome.stock_path}")
    trust = "" if winner.record.stock else ", trust_remote_code=True"
    say(f'load it:    AutoModelForCausalLM.from_pretrained("{outcome.winner_path}"{trust})')


def size_and_loss(outcome: Outcome) -> str:
    """The size and the loss of the winner, each beside the teacher's."""
    winner = outcome.winner
    share = winner.record.parameters / outcome.teacher_parameters
    sizes = f"{winner.record.parameters:,} parameters, {share:.1%} of the teacher{_bytes(outcome)}"
    return f"{sizes}; validation loss {winner.val_loss:.4f}, the teacher's {outcome.preparation.teacher_loss:.4f}"


def _bytes(outcome: Outcome) -> str:
    """The bytes of the winner's exported weights beside the teacher's, where they are what was searched for."""
    shape, own, budget = outcome.plan.target.shape, outcome.winner.record.architecture, outcome.plan.target.budget
    if not own.compression and budget.unit != BYTES:
        return ""
    size, teacher = stored_bytes(shape, own), stored_bytes(shape, shape.full)
    return f", {size / 1e6:,.2f} MB of weights, {size / teacher:.1%} of the teacher's in bfloat16"


def sizes_beside_teacher(outcome: Outcome) -> str:
    """The sizes of the winner, each beside the teacher's; of sizes that differ by layer the mean."""
    shape, own = outcome.plan.target.shape, outcome.winner.record.architecture
    heads, mlp = (sum(sizes) / own.depth for sizes in (own.heads, own.mlp))
    return (
        f"layers {own.depth} of {shape.layers}, width {own.hidden} of {shape.hidden}, "
        f"heads {heads:.3g} of {shape.heads}, MLP {mlp:,.0f} of {shape.mlp:,}"
    )
