"""The command: ``python -m nas.search --budget 260M``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from rich.console import Console

from nas.display.console import console_for
from nas.planning.errors import NothingFeasibleError
from nas.planning.settings import SearchSettings, parse_arguments
from search_spaces.errors import InputError

if TYPE_CHECKING:  # torch, Ray and transformers take seconds to import: only when the settings are right
    from nas.choosing.outcome import Outcome
    from nas.stages.events import Announcer
    from nas.tracking.listener import MlflowListener

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
    from nas.display.plan_table import plan_table
    from nas.planning.plan import make_plan, resolve_target

    target = resolve_target(settings)

    from nas.running.session import ray_session  # takes seconds to import: only when the settings are right
    from nas.running.workers import open_workers

    with ray_session(settings) as machine:
        plan = replace(make_plan(settings, target, machine), command=started_by)
        console.print(plan_table(plan))
        with open_workers(plan.resources) as workers:
            from nas.pipeline import run_search  # takes as long as the imports of the workers, which run meanwhile

            announce, mlflow = listeners(console)
            outcomes = run_search(plan, workers, announce)
    _print_result(outcomes, console, mlflow)
    if as_json:
        from nas.report.document import document

        print(json.dumps(document(outcomes), indent=2))
    return DONE


def listeners(console: Console) -> tuple[Announcer, MlflowListener]:
    """Everybody who hears what happens in a search: the terminal, the report and MLflow, in this order."""
    from nas.display.display import Display
    from nas.report.writer import ReportWriter
    from nas.stages.events import Announcer
    from nas.tracking.listener import MlflowListener

    announce, mlflow = Announcer(), MlflowListener(console)
    announce.listeners += [Display(console), ReportWriter(announce), mlflow]
    return announce, mlflow


def _print_result(outcomes: Sequence[Outcome], console: Console, mlflow: MlflowListener) -> None:
    from nas.report.terminal import print_result
    from nas.tracking.tracker import tracking_uri, ui_lines

    output = outcomes[0].plan.output
    print_result(outcomes, console, ui_lines(tracking_uri(output), mlflow.experiment_id))


def _dry_run(settings: SearchSettings, console: Console) -> int:
    from nas.display.console import clock
    from nas.display.plan_table import plan_table
    from nas.planning.forecast import estimated_seconds
    from nas.planning.machine import Machine
    from nas.planning.plan import make_plan, resolve_target

    plan = make_plan(settings, resolve_target(settings), Machine.local())
    console.print(plan_table(plan))
    tests = ", without the evaluation on test text" if plan.tests else ""
    console.print(f"estimated time on this machine: {clock(estimated_seconds(plan))}{tests}; nothing was started")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
