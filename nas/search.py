"""The command: ``python -m nas.search --budget 260M``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from rich.console import Console

from nas.display.console import console_for
from nas.planning.errors import NothingFeasibleError
from nas.planning.log_messages import log_messages
from nas.planning.redact import redacted, redacted_line
from nas.planning.settings import SearchSettings, command_line, ignored_variables, parse_arguments, with_commit
from search_spaces.errors import InputError

if TYPE_CHECKING:  # torch, Ray and transformers take seconds to import: only when the settings are right
    from nas.choosing.outcome import Outcome
    from nas.stages.events import Announcer
    from nas.tracking.listener import MlflowListener

DONE, FAILED, WRONG_INPUT, NOTHING_FEASIBLE, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code. No traceback reaches the user."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    console = console_for(stderr="--json" in given)
    try:
        settings, dry_run, as_json = parse_arguments(given)
        if ignored := ignored_variables():
            console.print(f"ignored: {', '.join(ignored)} in the environment; no setting has this name", soft_wrap=True)
        if dry_run:
            return _dry_run(settings, console, as_json)
        return _search(settings, console, as_json, command_line(given))
    except InputError as error:
        return _failed(str(error), WRONG_INPUT)
    except NothingFeasibleError as error:
        return _failed(str(error), NOTHING_FEASIBLE)
    except KeyboardInterrupt:
        print(f"interrupted; to continue: {command_line(given)}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # a fault of ours or of the machine: the details go to a file
        what, where = redacted_line(_root(error)), _write_traceback(error)
        return _failed(f"{what}; {where}; what is finished is kept, and the same command continues", FAILED)


def _root(error: BaseException) -> BaseException:
    """The first cause of ``error``. Optuna, for instance, hides "database is locked" behind a guess of its own."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _failed(message: str, code: int) -> int:
    print(f"error: {redacted(message)}", file=sys.stderr)
    return code


def _write_traceback(error: Exception) -> str:
    """Write the traceback of ``error`` to a temporary file, and say where it is."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="nas-error-", suffix=".log", delete=False) as file:
            file.write(redacted("".join(traceback.format_exception(error))))
    except OSError as full:
        return f"the details cannot be written ({full})"
    return f"details are in {file.name}"


def _search(settings: SearchSettings, console: Console, as_json: bool, started_by: str) -> int:
    from nas.display.plan_table import print_plan
    from nas.planning.plan import make_plan, resolve_target

    with log_messages(lambda text: console.print(text, markup=False, soft_wrap=True)):  # a download takes minutes
        target = resolve_target(settings)
    settings = with_commit(settings, target.folder)

    from nas.running.session import ray_session  # takes seconds to import: only when the settings are right
    from nas.running.workers import open_workers

    with ray_session(settings) as machine:
        plan = replace(make_plan(settings, target, machine), command=started_by)
        print_plan(plan, console)
        with open_workers(plan.resources) as workers:
            from nas.pipeline import run_search  # takes as long as the imports of the workers, which run meanwhile

            announce, mlflow = listeners(console)
            outcomes = run_search(plan, workers, announce)
    _print_result(outcomes, console, mlflow)
    if as_json:
        from nas.choosing.document import document

        print(json.dumps(document(outcomes), indent=2))
    return DONE


def listeners(console: Console) -> tuple[Announcer, MlflowListener]:
    """Everybody who hears what happens in a search: the terminal, the report and MLflow, in this order."""
    from nas.display.display import Display
    from nas.report.html.listener import PageWriter
    from nas.report.writer import ReportWriter
    from nas.stages.events import Announcer
    from nas.tables.writer import TableWriter
    from nas.tracking.listener import MlflowListener

    announce, mlflow = Announcer(), MlflowListener(console)
    pages = PageWriter(announce)
    announce.listeners += [Display(console), ReportWriter(announce), TableWriter(announce), pages, mlflow]
    return announce, mlflow


def _print_result(outcomes: Sequence[Outcome], console: Console, mlflow: MlflowListener) -> None:
    from nas.report.terminal import print_result
    from nas.tables.writer import print_table

    print_table(outcomes, console)
    print_result(outcomes, console, mlflow.ui_lines)


def _dry_run(settings: SearchSettings, console: Console, as_json: bool) -> int:
    from nas.display.console import clock
    from nas.display.plan_table import print_plan
    from nas.planning.forecast import estimated_seconds, plan_lines
    from nas.planning.machine import Machine
    from nas.planning.plan import make_plan, resolve_target

    target = resolve_target(settings)
    plan = make_plan(with_commit(settings, target.folder), target, Machine.local())
    print_plan(plan, console)
    seconds = estimated_seconds(plan)
    tests = " and the evaluation on test text" if plan.tests else ""
    least = "with this machine to itself, without the preparation of the teacher"
    console.print(f"estimated time: {clock(seconds)} {least}{tests}; nothing was started", soft_wrap=True)
    if as_json:
        print(
            json.dumps({"study": plan.study, "plan": plan_lines(plan), "estimated_seconds": round(seconds)}, indent=2)
        )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
