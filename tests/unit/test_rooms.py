"""Imports go one way, nas -> trials -> search_spaces, and each room keeps to its libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "search_spaces": {
        "torch",
        "transformers",
        "datasets",
        "ray",
        "optuna",
        "mlflow",
        "trials",
        "nas",
        "huggingface_hub",
    },
    "trials": {"ray", "optuna", "mlflow", "nas"},
    "nas": {"benchmarks", "tests"},
}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_room_imports_nothing_that_is_above_it(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): found for file in files if (found := imported(file) & FORBIDDEN[room])}
    assert not wrong


@pytest.mark.parametrize(
    ("module", "late"),
    [
        ("nas.running.client", "torch"),
        ("nas.planning.plan", "transformers.modeling_utils"),
        ("nas.planning.forecast", "ray"),
    ],
)
def test_what_starts_a_search_leaves_what_takes_seconds_to_import_for_later(module: str, late: str) -> None:
    code = f"import sys, {module}; sys.exit({late!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
