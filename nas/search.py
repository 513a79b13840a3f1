"""The command: ``python -m nas.search --budget 260M``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from rich.console import Console
from rich.table import Table

from nas.display.console import console_for
from nas.planning.errors import NothingFeasibleError
from nas.planning.settings import SearchSettings, parse_arguments
from search_spaces.errors import InputError

if TYPE_CHECKING:  # torch, Ray and transformers take seconds to import: not before the settings are right
    from nas.choosing.outcome import Outcome
    from nas.planning.plan import Plan

DONE, WRONG_INPUT, NOTHING_FEASIBLE, INTERRUPTED = 0, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    console = console_for(stderr="--json" in given)
    try:
        settings, dry_run, as_json = parse_arguments(given)
        if dry_run:
            return _dry_run(settings, console)
        return _search(settings, console, as_json, command(given))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except NothingFeasibleError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOTHING_FEASIBLE
    except KeyboardInterrupt:
        print(f"interrupted; to continue: {command(given)}", file=sys.stderr)
        return INTERRUPTED


def command(arguments: Sequence[str]) -> str:
    """The command line that starts, or continues, this search."""
    return shlex.join(["python", "-m", "nas.search", *arguments])


def _search(settings: SearchSettings, console: Console, as_json: bool, started_by: str) -> int:
    from nas.planning.plan import make_plan, resolve_target
    from nas.running.session import ray_session
    from nas.running.workers import open_workers

    target = resolve_target(settings)
    with ray_session(settings) as machine:
        plan = make_plan(settings, target, machine)
        _print_plan(plan, console)
        with open_workers(plan.resources) as workers:
            from nas.choosing.outcome import document  # takes as long as what the workers import meanwhile
            from nas.pipeline import conduct

            outcomes = conduct(plan, workers, console, started_by)
    for outcome in outcomes:
        _print_outcome(outcome, console)
    _print_whole(outcomes, console)
    if as_json:
        print(json.dumps(document(outcomes), indent=2))
    return DONE


def _dry_run(settings: SearchSettings, console: Console) -> int:
    from nas.display.trial_progress import clock
    from nas.planning.forecast import estimated_seconds
    from nas.planning.machine import Machine
    from nas.planning.plan import make_plan, resolve_target

    plan = make_plan(settings, resolve_target(settings), Machine.local())
    _print_plan(plan, console)
    time = clock(estimated_seconds(plan)) + (", and what reading the test text takes" if plan.tests else "")
    console.print(f"estimated time on this machine: {time}; nothing was started (--dry-run)")
    return DONE


def _print_plan(plan: Plan, console: Console) -> None:
    from nas.planning.forecast import summary

    table = Table(box=None, show_header=False, pad_edge=False)
    for what, value in summary(plan):
        table.add_row(f"[bold]{what}[/bold]", value)
    console.print(table)


def _print_outcome(outcome: Outcome, console: Console) -> None:
    from nas.report.front_report import front_table
    from nas.report.report_folder import teacher_parameters
    from nas.report.trial_report import terminal_table

    winner, teacher = outcome.winner, teacher_parameters(outcome)
    rows = outcome.comparison.rows if outcome.comparison else ()
    roles = {row.architecture: row.roles[0] for row in rows} if rows else None
    console.print()
    title = f"study {outcome.plan.study}, budget {outcome.plan.target.budget.text}"
    console.print(terminal_table(outcome.records, teacher, title, roles))
    console.print()
    if len(outcome.plan.objectives) > 1:
        console.print(front_table(outcome.records, outcome.plan.objectives))
        console.print()
    _print_comparison(outcome, console)
    share = f"{winner.record.parameters:,} parameters, {winner.record.parameters / teacher:.1%} of the teacher"
    losses = f"validation loss {winner.val_loss:.4f}, the teacher's {outcome.preparation.teacher_loss:.4f}"
    say = partial(console.print, soft_wrap=True)  # a path or a command is not to be broken
    say(f"[bold]best[/bold]        {winner.key}: {share}; {losses}")
    say(f"            {outcome.winner_path}")
    for note in outcome.comparison.notes if outcome.comparison else ():
        say(f"            {note}")
    if outcome.stock and outcome.stock.key != winner.key:
        key, loss = outcome.stock.key, outcome.stock.val_loss
        say(f"[bold]best stock[/bold]  {key}: loads without code of ours; validation loss {loss:.4f}")
        say(f"            {outcome.stock_path}")
    trust = "" if winner.record.stock else ", trust_remote_code=True"
    say(f'load it:    AutoModelForCausalLM.from_pretrained("{outcome.winner_path}"{trust})')


def _print_whole(outcomes: Sequence[Outcome], console: Console) -> None:
    from nas.report.overview import overview_table
    from nas.tracking.tracker import tracking_uri, ui_lines

    if len(outcomes) > 1:
        console.print()
        console.print(overview_table(outcomes))
        console.print()
    plan, say = outcomes[0].plan, partial(console.print, soft_wrap=True)
    command, *address = ui_lines(tracking_uri(plan.output), outcomes[0].experiment_id)
    say(f"see it:     {command}")
    for line in address:
        say(f"            {line}")
    say(f"report:     {plan.folder / 'report'}")


def _print_comparison(outcome: Outcome, console: Console) -> None:
    from nas.choosing.agreement import lines
    from nas.report.final_report import comparison_table, on_test_table

    console.print("could the cheap comparison be trusted?")
    for line in lines(outcome.agreements, any(one.state == "PRUNED" for one in outcome.records)):
        console.print(line, style="dim", soft_wrap=True)
    console.print()
    if outcome.comparison:
        for table in (comparison_table(outcome.comparison), on_test_table(outcome.comparison)):
            if table is not None:
                console.print(table)
                console.print()


if __name__ == "__main__":
    sys.exit(main())
