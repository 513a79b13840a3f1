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

from nas.cluster.signals import forget_interruption, sigterm_as_ctrl_c
from nas.display.console import console_for
from nas.planning.errors import NothingFeasibleError, root_of
from nas.planning.log_messages import log_messages
from nas.planning.settings import (
    SearchSettings,
    command_line,
    ignored_variables,
    parse_arguments,
    submit_address,
    with_commit,
)
from nas.submit import refuse_folder_of_the_job, submit_search
from search_spaces.errors import InputError
from trials.storage.redact import redacted, redacted_line

if TYPE_CHECKING:  # torch, Ray and transformers take seconds to import: only when the settings are right
    from nas.choosing.outcome import Outcome
    from nas.mirror.listener import MirrorListener
    from nas.mirror.store import Store
    from nas.planning.machine import Machine
    from nas.stages.events import Announcer
    from nas.tracking.listener import MlflowListener

ONLY_CPUS = (
    "trials run on CPUs: no node has a GPU, and no autoscaler says which nodes it can bring; "
    "--device cuda waits for nodes with GPUs"
)
DONE, FAILED, WRONG_INPUT, NOTHING_FEASIBLE, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code. No traceback reaches the user."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    console = console_for(stderr="--json" in given)
    try:
        with sigterm_as_ctrl_c():
            return _run(given, console)
    except InputError as error:
        return _failed(str(error), WRONG_INPUT)
    except NothingFeasibleError as error:
        return _failed(str(error), NOTHING_FEASIBLE)
    except KeyboardInterrupt:
        forget_interruption()
        print(f"interrupted; to continue: {command_line(given)}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # a fault of ours or of the machine: the details go to a file
        what, where = redacted_line(root_of(error)), _write_traceback(error)
        return _failed(f"{what}; {where}; what is finished is kept, and the same command continues", FAILED)


def _run(given: list[str], console: Console) -> int:
    settings, dry_run, as_json = parse_arguments(given)
    if ignored := ignored_variables():
        console.print(f"ignored: {', '.join(ignored)} in the environment; no setting has this name", soft_wrap=True)
    if (address := submit_address(given)) is not None:
        return submit_search(address, given, settings, as_json)
    if dry_run:
        return _dry_run(settings, console, as_json)
    refuse_folder_of_the_job(settings.output)
    return _search(settings, console, as_json, command_line(given))


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
    _check_server(settings.storage)
    store = _mirror(settings.mirror)

    from nas.cluster.session import ray_session  # takes seconds to import: only when the settings are right
    from nas.running.workers import Pace, open_workers

    with ray_session(settings) as machine:
        plan = replace(make_plan(settings, target, machine), command=started_by)
        print_plan(plan, console)
        if not plan.resources.gpus and settings.device == "auto" and machine.grows and not machine.coming:
            console.print(ONLY_CPUS, soft_wrap=True)
        pace = Pace(hung_after=settings.hung_after)
        with open_workers(plan.resources, str(plan.output), machine, pace) as workers:
            from nas.pipeline import run_search  # takes as long as the imports of the workers, which run meanwhile

            announce, mlflow = listeners(console)
            mirror = mirror_listener(store, console, announce)
            outcomes = run_search(plan, workers, announce, mirror)
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


def _check_server(storage: str | None) -> None:
    """Raise InputError when there is no database server at the URL ``storage``. A file is looked at later."""
    if storage is None or storage.startswith("sqlite:"):
        return
    from nas.study.storage import open_storage

    open_storage(storage)


def _mirror(url: str | None) -> Store | None:
    """The mirror at ``url``, after a file was written there and read back. Raises InputError."""
    if url is None:
        return None
    from nas.mirror.store import Store

    store = Store(url)
    store.check()
    return store


def mirror_listener(store: Store | None, console: Console, announce: Announcer) -> MirrorListener | None:
    """The listener that fills the mirror ``store``, after all others: they write files that belong there."""
    if store is None:
        return None
    from nas.mirror.listener import MirrorListener

    announce.listeners.append(listener := MirrorListener(store, console))
    return listener


def _print_result(outcomes: Sequence[Outcome], console: Console, mlflow: MlflowListener) -> None:
    from nas.report.terminal import print_result
    from nas.tables.writer import print_table

    print_table(outcomes, console)
    print_result(outcomes, console, mlflow.ui_lines)


def _dry_run(settings: SearchSettings, console: Console, as_json: bool) -> int:
    from nas.display.console import clock
    from nas.display.plan_table import print_plan
    from nas.planning.disk_space import disk_space, size_of
    from nas.planning.forecast import estimated_seconds, plan_lines
    from nas.planning.plan import make_plan, resolve_target
    from trials.storage.disk import free_bytes

    target = resolve_target(settings)
    plan = make_plan(with_commit(settings, target.folder), target, _machine_of(settings))
    print_plan(plan, console)
    seconds, space = estimated_seconds(plan), disk_space(plan)
    tests = " and the evaluation on test text" if plan.tests else ""
    least = "with this machine to itself, without the preparation of the teacher"
    console.print(f"estimated time: {clock(seconds)} {least}{tests}; nothing was started", soft_wrap=True)
    console.print(f"disk space: {space}, on a disk with {size_of(free_bytes(plan.output))} free", soft_wrap=True)
    if as_json:
        estimated = {"estimated_seconds": round(seconds), "estimated_disk_bytes": space.total}
        print(json.dumps({"study": plan.study, "plan": plan_lines(plan), **estimated}, indent=2))
    return DONE


def _machine_of(settings: SearchSettings) -> Machine:
    """The machine of a dry run: the cluster that the settings name, or this one, without starting Ray."""
    from nas.planning.machine import Machine

    if not (settings.address or os.environ.get("RAY_ADDRESS")):
        return Machine.local()
    from nas.cluster.session import ray_session

    with ray_session(settings) as machine:
        return machine


if __name__ == "__main__":
    sys.exit(main())
