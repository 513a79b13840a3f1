"""A search of the preset "stack": at its end the winner is measured in processes of its own, and the table is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT
from small_search import arguments, clean_environment, write_text

from search_spaces.architecture import Architecture

ONE_ROW = """
import sys
from nas.search import main
from nas.tables import stack
stack.ROWS = {name: one for name, one in stack.ROWS.items() if name == "+ fused attention"}
sys.exit(main())
"""


def test_the_preset_ends_with_its_table(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    for package in ("peft", "bitsandbytes"):
        pytest.importorskip(package)
    given = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path / "out", "one")
    at = given.index("--finalists")
    settings = [*given[:at], *given[at + 2 :], "--space", "stack", "--trials", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", ONE_ROW, *settings],
        cwd=ROOT,
        env={**clean_environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    winner = Architecture.from_dict(json.loads(done.stdout)["best"]["architecture"]).key
    assert "stack: + fused attention (1 of 1)" in done.stderr
    assert f"stack: {winner} of" in done.stderr
    assert {"stack.md", "stack.csv"} <= {one.name for one in (tmp_path / "out" / "one" / "report").iterdir()}
    costs = tmp_path / "out" / "one" / "stack" / "distil+lora+pruned+nf4+flash" / "costs.json"
    assert json.loads(costs.read_text())["costs"]["architecture"] == winner
