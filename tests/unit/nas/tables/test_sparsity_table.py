"""The table of sparse students: rows in order, what was done in words, and the files of a table."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tracking_reference import record

from nas.tables.sparsity import how, sparsity_table
from nas.tables.study_table import csv_text, markdown, terminal
from search_spaces.compression import Compression, Quantization, Sparsity

TRIED = {
    Compression(Sparsity(0.7, method="sparsegpt")): 3.5,
    Compression(Sparsity(0.5, end=0.5)): 3.1,
    Compression(Sparsity(0.5, method="wanda")): 3.0,
    Compression(): 2.9,
    Compression(Sparsity(0.5, "2:4", method="pdp", tau=0.001, beta=2, mask_aware=True), Quantization("int8")): 3.2,
}


def outcome(tokens: int = 4096, text_share: float = 0.0) -> Any:
    plain = record(0, "COMPLETE")
    records = [
        replace(
            plain,
            number=number,
            architecture=replace(plain.architecture, compression=done),
            val_loss=loss,
            curve=((0, loss + 1), (tokens, loss)),
        )
        for number, (done, loss) in enumerate(TRIED.items())
    ]
    plan = SimpleNamespace(recipe=SimpleNamespace(model="tiny", tokens=tokens, text_share=text_share))
    return SimpleNamespace(
        plan=plan, preparation=SimpleNamespace(teacher_loss=2.5), records=[*records, record(9, "FAIL")]
    )


def test_rows_ascend_by_sparsity_and_loss() -> None:
    found = list(csv.DictReader(io.StringIO(csv_text(sparsity_table([outcome()])))))
    assert [row["model"] for row in found][:1] == ["teacher"]
    assert [float(row["sparsity"]) for row in found] == [0, 0, 0.5, 0.5, 0.5, 0.7]
    losses = [math.log(float(row["perplexity"])) for row in found]
    assert losses == pytest.approx([2.5, 2.9, 3.0, 3.1, 3.2, 3.5])
    before = [row["perplexity before"] for row in found]
    assert before[0] == ""
    assert math.log(float(before[1])) == pytest.approx(3.9)
    assert [row["bits"] for row in found] == ["", "", "", "", "int8", ""]


@pytest.mark.parametrize(
    ("tokens", "share", "word"), [(4096, 0.0, "yes"), (4096, 1.0, "no"), (4096, 0.5, "partly"), (0, 0.0, "no")]
)
def test_the_last_column_says_whether_students_were_distilled(tokens: int, share: float, word: str) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(sparsity_table([outcome(tokens, share)])))))
    assert {row["distilled"] for row in rows[1:]} == {word}


def test_a_candidate_can_be_trained_without_distillation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_sparsity_table.TRIED", {Compression(Sparsity(0.5, distilled=False)): 3.0})
    _, row = csv.DictReader(io.StringIO(csv_text(sparsity_table([outcome()]))))
    assert (row["how"], row["distilled"]) == ("magnitude", "no")


def test_ways_are_told_in_words() -> None:
    words = [how(one) for one in TRIED]
    assert words == [
        "sparsegpt",
        "magnitude, from 0% to 50% of the steps",
        "wanda",
        "",
        "pdp, 2:4, tau 0.001, beta 2, mask-aware",
    ]
    assert how(Compression(Sparsity(0.5, matrices=("mlp",)))) == "magnitude, mlp only"


def test_the_table_is_the_same_for_the_terminal_and_in_markdown() -> None:
    table, console = sparsity_table([outcome()]), Console(width=120, record=True)
    console.print(terminal(table))
    for text in (console.export_text(), markdown(table)):
        assert all(part in text for part in ("sparsity of tiny, 4,096 tokens", "50.0%", "20.09", "mask-aware"))
    assert markdown(table).count("\n| ") == len(table.rows) + 2
