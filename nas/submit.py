"""``--submit``: the command runs as a job of a Ray cluster, with the code that is here."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nas.cluster.remote_job import Job, connect
from nas.planning.settings import ENVIRONMENT_PREFIX, SearchSettings, command_line
from search_spaces.errors import InputError
from search_spaces.files import PRESETS
from trials.storage.redact import redacted

PACKAGES = ("nas", "trials", "search_spaces")
SOURCES = ("model", "corpus", "validation", "test", "test_tasks")  # settings that may name files
TRACKING = "MLFLOW_TRACKING_URI"
OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the environment of a job
SET_THERE = "set it in the environment of the cluster's nodes, as with NAS_STORAGE"
ELSEWHERE = "the cluster does not have it; give an absolute path on the folder that its nodes share"


def submit_search(address: str, arguments: Sequence[str], settings: SearchSettings, as_json: bool) -> int:
    """Run the search of ``arguments`` as a job on the cluster whose Jobs API is at ``address``; returns its exit code.

    Ctrl-C and SIGTERM stop the job, and the call returns when it has ended. The search's own code travels with the
    job. So do YAML files that ``arguments`` name by a relative path.

    Raises InputError for what the job would not find on the cluster, and as `connect` and `Job` do.
    """
    _check(settings, as_json)
    command, files, variables = _command(arguments), _travelling(arguments, settings), _variables()
    job = Job(connect(address), address.rstrip("/"), f"nas_{secrets.token_hex(8)}")
    with _terminated_as_interrupted():
        try:
            with _folder(files) as folder:
                job.start(command, {"working_dir": str(folder), "env_vars": variables})
            return job.follow()
        except KeyboardInterrupt:
            code = job.stop()
            print(f"to continue: {redacted(command_line(arguments))}", file=sys.stderr)
            return code


def refuse_folder_of_the_job(output: str) -> None:
    """Raise InputError in a job whose ``output`` is in the job's own folder: Ray removes it when the job has ended."""
    runtime = json.loads(os.environ.get(OF_A_JOB, "{}")).get("runtime_env") or {}
    if "working_dir" in runtime and not Path(output).expanduser().is_absolute():
        raise InputError(
            f"--output {output}: Ray removes the folder of a job when it has ended; "
            "set NAS_OUTPUT on the cluster, or give --output an absolute path that all nodes share"
        )


def _check(settings: SearchSettings, as_json: bool) -> None:
    """Raise InputError for a setting that a job cannot have, such as a path of this machine."""
    if as_json:
        raise InputError("--json: a job has one stream for all its output; leave --json or --submit out")
    if settings.address:
        raise InputError(f"--address {settings.address}: a job runs on the cluster of --submit; leave --address out")
    if "output" in settings.model_fields_set and not os.path.isabs(settings.output):
        raise InputError(f"--output {settings.output}: a path of this machine; {ELSEWHERE}, or set NAS_OUTPUT there")
    if re.match(r"sqlite(\+\w+)?:///(?!/)", settings.storage or ""):
        raise InputError(f"--storage {settings.storage}: a path of this machine; {ELSEWHERE}")
    for name in SOURCES:
        for entry in (getattr(settings, name) or "").split(","):
            source = entry.strip().rpartition("=")[2]
            if _is_local(source):
                raise InputError(f"--{name.replace('_', '-')} {source}: a path of this machine; {ELSEWHERE}")


def _is_local(source: str) -> bool:
    """Whether ``source``, with or without a weight (``./text:0.3``), is a relative path or one in a home folder."""
    there = os.path.exists(source) or os.path.exists(source.rpartition(":")[0])
    return source.startswith((".", "~")) or (there and not os.path.isabs(source))


def _command(arguments: Sequence[str]) -> str:
    """The command of the job. Raises InputError for a password in it or in a setting of the environment.

    The dashboard shows the commands of jobs, and `command_line` hides passwords: a job would get stars for one.
    """
    given = without_submit(arguments)
    flags = {one.partition("=")[0] for one in given}
    if redacted(shlex.join(given)) != shlex.join(given):
        raise InputError(f"--submit: the command holds a password, and the dashboard would show it; {SET_THERE}")
    for name in SearchSettings.model_fields:
        variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
        value = os.environ.get(variable, "")
        if redacted(value) != value and f"--{name.replace('_', '-')}" not in flags:
            raise InputError(f"{variable}: holds a password, which does not go with a job; {SET_THERE}; unset it here")
    return command_line(given)


def without_submit(arguments: Sequence[str]) -> list[str]:
    """``arguments`` without the flag ``--submit`` and its value."""
    kept, rest = [], iter(arguments)
    for one in rest:
        if one == "--submit":
            next(rest, None)
        elif not one.startswith("--submit="):
            kept.append(one)
    return kept


def _travelling(arguments: Sequence[str], settings: SearchSettings) -> list[Path]:
    """The files that go with the job: those of --config and --space, when they are given by a relative path."""
    space = [] if settings.space in PRESETS else [settings.space]
    files = [Path(one) for one in (*_values(arguments, "--config"), *space) if not os.path.isabs(one)]
    if outside := next((one for one in files if ".." in one.parts), None):
        raise InputError(f"{outside}: only files of this folder go with a job; copy it here, or give its absolute path")
    return files


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """The values of ``flag``, written ``--flag value`` or ``--flag=value``."""
    after = [arguments[place + 1] for place, one in enumerate(arguments) if one == flag]
    return after + [one.partition("=")[2] for one in arguments if one.startswith(f"{flag}=")]


def _variables() -> dict[str, str]:
    """The variables that go with the job: the address of the MLflow server. Raises InputError for one without use."""
    server = os.environ.get(TRACKING, "")
    if server and not server.startswith(("http://", "https://")):
        raise InputError(f"{TRACKING} {redacted(server)}: a store of this machine; give http://HOST:PORT, or unset it")
    if redacted(server) != server:
        raise InputError(
            f"{TRACKING} {redacted(server)}: whoever may submit jobs could read the password; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment of the cluster's nodes"
        )
    return {TRACKING: server} if server else {}


@contextmanager
def _folder(files: Sequence[Path]) -> Iterator[Path]:
    """A temporary folder with the code of the search and ``files``: what the cluster gets as the folder of the job."""
    with TemporaryDirectory(prefix="nas-job-") as name:
        folder = Path(name)
        for package in PACKAGES:
            source = Path(__file__).parents[1] / package
            shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file)
        yield folder


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C during the block."""
    previous = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
