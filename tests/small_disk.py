"""Disks of a few MB, as real as a disk can be: a tmpfs in a mount namespace, for which nobody needs rights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bounded import run_bounded

TESTS = Path(__file__).resolve().parent
INSIDE = ["unshare", "-Urm"]


def needs_disks() -> None:
    """Skip the test where no disk can be had."""
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", "/tmp"]
    if not shutil.which("unshare") or subprocess.run([*INSIDE, *mounting], capture_output=True).returncode:
        pytest.skip("no small disk: unshare may not make a mount namespace here")


def on_disk(folder: Path, size: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` where ``folder`` is a disk of its own of ``size``, such as 64m. It is gone afterwards."""
    mounted = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    paths = [TESTS.parent, TESTS, TESTS / "fault", TESTS / "unit" / "nas" / "study"]
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, paths))}
    return run_bounded([*INSIDE, "sh", "-c", mounted, str(folder), *command], env=environment)


def python(file: str) -> tuple[str, str]:
    """The command that runs a ``file`` of the tests of faults."""
    return sys.executable, str(TESTS / "fault" / file)
