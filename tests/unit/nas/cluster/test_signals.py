"""Ctrl-C at any moment gives the exit code of the command, not the death by a signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import nas.{command} as command

def interrupted(*given):
    exec("raise KeyboardInterrupt")  # as in an import: dataclasses and named tuples run text

command.{step} = interrupted
sys.exit(command.main([]))
"""


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("search", "_run"),
        ("export", "parse_arguments"),
        ("evaluate", "parse_arguments"),
        ("report.__main__", "_parser"),
    ],
)
def test_an_interruption_of_an_import_has_the_exit_code_of_every_other(command: str, step: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(command=command, step=step))
    done = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("interrupted; ")
    assert "Traceback" not in done.stderr
    assert done.returncode == 130
