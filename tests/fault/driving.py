"""The command as a process of its own, for tests that kill it or what it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from small_search import clean_environment

PATIENCE = 600  # seconds for one run of the command; a bound for what hangs, on however slow a machine


class Driver:
    """The command in ``folder``, in a session of its own as a terminal would start it, read line by line."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=folder,
            env=clean_environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Ctrl-C is ignored by whatever is started behind an &, these tests perhaps among it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        self.limit = threading.Timer(PATIENCE, self.process.kill)  # what hangs is to fail here, not to hang the tests
        self.limit.daemon = True
        self.limit.start()

    def wait_for(self, pattern: re.Pattern[str]) -> None:
        """Read until a line matches."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if pattern.search(line):
                return
        pytest.fail(f"ended before {pattern.pattern!r}:\n{''.join(self.lines)}")

    def wait_for_lines(self, count: int) -> None:
        """Read ``count`` lines, or all if there are fewer."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if len(self.lines) >= count:
                return

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.002) -> None:
        """Look again and again, with a ``pause`` in seconds, until ``condition`` holds."""
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(f"ended before the condition held:\n{self.finish()} {''.join(self.lines)}")
            time.sleep(pause)

    def has_process(self, pattern: str) -> bool:
        """Whether it has started a process, directly or not, whose command line matches. To look takes milliseconds."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                if re.search(pattern, " ".join(process.cmdline())):
                    return True
        return False

    def family(self) -> list[psutil.Process]:
        """All processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def signal(self, number: int, alone: bool = False) -> list[psutil.Process]:
        """Send a signal to the process group, as Ctrl-C does, or to the process ``alone``.

        Returns all processes that it had started by then.
        """
        family = self.family()
        (os.kill if alone else os.killpg)(self.process.pid, number)
        return family

    def finish(self) -> int:
        """The exit code, when it has come to its end."""
        try:
            self.lines.append(self.process.communicate()[0])
        finally:
            self.process.kill()
            self.limit.cancel()
        return self.process.returncode
