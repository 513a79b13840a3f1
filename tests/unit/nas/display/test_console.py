"""What a console prints: whole digits on a narrow terminal, no trailing spaces in a pipe."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from nas.display.console import fitted


def table() -> Table:
    made = Table("name", "parameters", "share", "loss", box=None, pad_edge=False, collapse_padding=True)
    for column in made.columns:
        column.no_wrap = True
    made.add_row("d8-h224-a7-m512", "4,436,160", "59.7%", "2.6822")
    return made


@pytest.mark.parametrize(
    ("width", "kept"),
    [
        (80, ["name", "parameters", "share", "loss"]),
        (36, ["name", "parameters", "loss"]),
        (25, ["name", "loss"]),
        (10, ["name", "loss"]),
    ],
)
def test_a_narrow_console_drops_columns_and_never_digits(width: int, kept: list[str]) -> None:
    console = Console(file=io.StringIO(), width=width)
    found = fitted(table(), console, ("share", "parameters"))
    assert [one.header for one in found.columns] == kept
    if width >= 25:
        console.print(found)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "2.6822" in text
        assert ("4,436,160" in text) is ("parameters" in kept)
        assert "…" not in text


@pytest.mark.parametrize("width", range(20, 46))
def test_what_is_left_without_a_column_in_the_middle_is_whole(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    found = fitted(table(), console, ("parameters",))
    if console.measure(found, options=console.options.update(width=80)).maximum <= width:
        console.print(found)
        assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_pipe_gets_no_trailing_spaces() -> None:
    code = (
        "from nas.display.console import console_for; from rich.table import Table\n"
        "table = Table('a', 'b', box=None); table.add_row('1', 'long'); table.add_row('2', 'x')\n"
        "console_for(stderr=False).print(table)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
