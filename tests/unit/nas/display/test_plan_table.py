"""The plan on terminals of any width."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from made_outcome import made_plan
from rich.console import Console

from nas.display.plan_table import print_plan
from nas.planning.forecast import summary


@pytest.mark.parametrize("width", [40, 60, 80, 120, 1_000])
def test_a_path_is_whole_and_every_word_of_the_plan_is_there(width: int, tiny_teacher_folder: Path) -> None:
    plan = made_plan(tiny_teacher_folder, Path("/tmp/a/long/way") / ("folder" * 20))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_plan(plan, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert any(line.endswith(str(plan.folder)) for line in text.splitlines())
    assert any(line.endswith(plan.storage) for line in text.splitlines())
    short = [(what, value) for what, value in summary(plan) if len(max(value.split(), key=len)) < 20]
    assert len(short) > 5
    for what, value in short:
        assert set(value.split()) <= set(text.split()), what
    starts = {
        line.index(value[:5])
        for what, value in summary(plan)
        for line in text.splitlines()
        if line.startswith(f"{what} ")
    }
    assert len(starts) == 1, "all values begin in one column"
