"""The result on terminals of any width: columns go, digits stay, and what is copied has no line breaks."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_outcome import made_outcome, made_plan
from rich.console import Console

from nas.choosing.outcome import Outcome
from nas.report.terminal import print_result
from search_spaces.shape import ModelShape
from trials.evaluate.perplexity import NON_OVERLAPPING
from trials.evaluate.reading import TOKEN_PERPLEXITY, Reading

WIDE = 1_000
ADDRESS = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=" + "s" * 60
LARGE = {
    "shape": ModelShape("gpt2", 96, 12288, 96, 128, 49152, 50257, 2048, tied=True),
    "parameters": 123_456_789_012,
    "tokens": 98_765_432_109,
}


def printed(outcomes: list[Outcome], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_result(outcomes, console, ["mlflow ui", ADDRESS])
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def figures(text: str) -> set[str]:
    """All words with a digit in them."""
    return {word for word in text.split() if re.search(r"\d", word)}


@pytest.fixture(scope="module", params=["usual", "large", "several objectives", "other text", "two budgets"])
def outcomes(request: pytest.FixtureRequest, tiny_teacher_folder: Path) -> list[Outcome]:
    more = {"objectives": "loss,params,bytes,memory,latency"} if request.param == "several objectives" else {}
    sizes = LARGE if request.param == "large" else {}
    outcome = made_outcome(made_plan(tiny_teacher_folder, Path("/tmp/a/long/way/to/a/folder"), **more), **sizes)
    assert outcome.comparison is not None
    if request.param == "other text":
        texts = ("wikitext-2", "ptb", "lambada", "python-docs")
        readings = tuple(
            Reading(one, NON_OVERLAPPING, TOKEN_PERPLEXITY, 1234.56, "", length=64, tokens=9_999) for one in texts
        )
        rows = tuple(replace(row, test=readings) for row in outcome.comparison.rows)
        outcome = replace(outcome, comparison=replace(outcome.comparison, rows=rows))
    return [outcome, outcome] if request.param == "two budgets" else [outcome]


@pytest.mark.parametrize("width", range(60, 141, 4))
def test_no_number_is_cut_on_a_narrow_terminal(outcomes: list[Outcome], width: int) -> None:
    text = printed(outcomes, width)
    assert figures(text) <= figures(printed(outcomes, WIDE))
    assert not re.search(r"[\d,.]…", text)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_is_copied_is_one_line(outcomes: list[Outcome], width: int) -> None:
    lines = printed(outcomes, width).splitlines()
    path = str(outcomes[0].winner_path)
    assert any(line.strip() == ADDRESS for line in lines)
    assert any(line.strip().endswith(f'AutoModelForCausalLM.from_pretrained("{path}")') for line in lines)
    assert any(line.strip() == path for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_table_is_wider_than_the_terminal(outcomes: list[Outcome], width: int) -> None:
    """Prose and paths may be longer; the terminal breaks them, and they copy whole."""
    tables = [line for line in printed(outcomes, width).splitlines() if re.search(r"\S {2,}\S", line[12:])]
    wide = {len(line) for line in tables if len(line) > width}
    assert not wide or width == 60, wide
