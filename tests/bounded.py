"""Programs that tests run to their end. One that hangs says where, and fails its test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
import pytest

BOUND = 600.0  # seconds for one program; a bound for what hangs, on however slow a machine
LAST_WORDS = 5.0  # seconds in which Python writes the stacks of its threads


def run_bounded(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with its output captured as text. After `BOUND` the test fails with the stacks of all threads
    of all processes of Python.
    """
    environment = {**options.pop("env", os.environ), "PYTHONFAULTHANDLER": "1"}
    words, pipe = list(map(str, command)), subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment, **options) as process:
        try:
            out, errors = process.communicate(timeout=BOUND)
        except subprocess.TimeoutExpired:
            one = psutil.Process(process.pid)
            family = [*one.children(recursive=True), one]
            _send(family, signal.SIGABRT)
            time.sleep(LAST_WORDS)
            _send(family, signal.SIGKILL)
            pytest.fail(f"still running after {BOUND:.0f} s: {words}\n{process.communicate()[1][-20_000:]}")
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


def _send(family: list[psutil.Process], number: int) -> None:
    for one in family:
        with suppress(psutil.Error):
            one.send_signal(number)
