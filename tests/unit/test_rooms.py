"""Rooms: imports go one way, no folder is crowded, and each keeps to its libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_FILES = 12  # in a folder, without its __init__.py

# Top folders and the folders inside them, lowest first. A file imports its own folder and those listed before it; the
# files of a top folder itself come last.
ROOMS = {
    "search_spaces": (),
    "trials": (
        "storage",
        "families",
        "text",
        "losses",
        "teacher",
        "prune",
        "compress",
        "distill",
        "evaluate",
        "export/gguf",
        "export",
    ),
    "nas": (
        "driver",
        "study",
        "planning",
        "choosing",
        "cluster",
        "running",
        "stages",
        "display",
        "report/html",
        "report",
        "tables",
        "tracking",
        "mirror",
    ),
    "benchmarks": ("mini", "pruning", "peers", "distillation", "search", "service"),
}
ORDER = [room for top, inside in ROOMS.items() for room in (*(f"{top}/{one}" for one in inside), top)]
# `benchmarks` has its common helpers at the top, below its folders.
ORDER.insert(ORDER.index("benchmarks/mini"), ORDER.pop(ORDER.index("benchmarks")))

FORBIDDEN = {
    "search_spaces": {"torch", "transformers", "datasets", "huggingface_hub", "ray", "optuna", "mlflow"},
    "trials": {"ray", "optuna", "mlflow"},
}
FILES = sorted(path for top in ROOMS for path in (ROOT / top).rglob("*.py"))


def room_of(file: Path) -> str:
    """The folder of ``file``, as in `ORDER`."""
    return file.parent.relative_to(ROOT).as_posix()


def imported(file: Path) -> set[str]:
    """The modules that ``file`` imports anywhere in it, as dotted names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_imported(name: str) -> str | None:
    """The room that holds the dotted ``name``, a module or a name in a module; None for a library."""
    parts = name.split(".")
    rooms = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((room for room in rooms if room in ORDER), None)


def climbs(file: Path) -> list[str]:
    """What ``file`` imports from rooms that come after its own."""
    own = ORDER.index(room_of(file))
    return sorted(name for name in imported(file) if (room := room_imported(name)) and ORDER.index(room) > own)


def test_every_folder_with_code_is_a_room_with_a_place_in_the_order() -> None:
    assert {room_of(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_those_before_it(room: str) -> None:
    wrong = {file.name: found for file in FILES if room_of(file) == room and (found := climbs(file))}
    assert not wrong


@pytest.mark.parametrize("top", FORBIDDEN)
def test_a_top_folder_keeps_to_its_libraries(top: str) -> None:
    files = [file for file in FILES if file.relative_to(ROOT).parts[0] == top]
    names = {str(file.relative_to(ROOT)): {name.split(".")[0] for name in imported(file)} for file in files}
    assert not {file: found for file, used in names.items() if (found := used & FORBIDDEN[top])}


def test_no_folder_is_crowded() -> None:
    counted = Counter(room_of(file) for file in FILES if file.name != "__init__.py")
    assert not {room: count for room, count in counted.items() if count > MOST_FILES}


@pytest.mark.parametrize("room", ORDER)
def test_the_init_of_a_room_says_what_the_room_is_for_and_nothing_else(room: str) -> None:
    (only,) = ast.parse((ROOT / room / "__init__.py").read_text("utf-8")).body
    assert isinstance(only, ast.Expr)
    assert isinstance(only.value, ast.Constant)
    assert isinstance(only.value.value, str)


@pytest.mark.parametrize(
    ("module", "late"),
    [
        ("nas.planning.settings", "numpy"),
        ("nas.planning.plan", "torch"),
        ("nas.planning.plan", "transformers"),
        ("nas.planning.forecast", "ray"),
        ("nas.running.client", "torch"),
        ("nas.search", "torch"),
        ("nas.evaluate", "torch"),
        ("nas.export", "torch"),
    ],
)
def test_a_command_imports_what_takes_seconds_only_when_its_flags_are_right(module: str, late: str) -> None:
    code = f"import sys, {module}; sys.exit({late!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
