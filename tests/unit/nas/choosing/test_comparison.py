"""The final comparison: who wins, by how much, and how it is shown."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from tracking_reference import final

from nas.choosing.bootstrap import paired_difference
from nas.choosing.comparison import Comparison, compare
from nas.choosing.selection import FINALIST, STOCK
from nas.display.console import fitted
from nas.planning.errors import NothingFeasibleError
from nas.report.final_report import (
    comparison_csv,
    comparison_markdown,
    comparison_table,
    on_test_markdown,
    on_test_notes,
    on_test_table,
)
from nas.report.terminal import LESS_NEEDED
from nas.study.records import FinalRecord
from trials.evaluate.perplexity import NON_OVERLAPPING
from trials.evaluate.reading import Reading

NOISE = np.random.default_rng(0).normal(0, 0.02, (8, 64))
WIDTH = 140
Windows = dict[str, dict[str, np.ndarray]]


def one(place: int, loss: float, *roles: str, stock: bool = False) -> tuple[FinalRecord, np.ndarray]:
    losses = 3.0 + NOISE[place] - NOISE[place].mean() + loss
    return final(place, val_loss=float(losses.mean()), roles=roles, stock=stock), losses


def made(*given: tuple[FinalRecord, np.ndarray], failed: FinalRecord | None = None) -> Comparison:
    finals = [record for record, _ in given] + ([failed] if failed else [])
    windows: Windows = {record.name: {"text": losses} for record, losses in given}
    return compare(finals, windows, {"text": np.full(64, 2.5)}, 8_000_000)


FINALS = (
    one(0, 0.10, FINALIST),
    one(1, 0.00, FINALIST, "depth only"),
    one(2, 0.30, FINALIST),
    one(3, 0.20, STOCK, stock=True),
    one(4, -0.10, "random"),
    one(5, 0.40, "width only"),
)


def test_the_smallest_loss_of_those_that_compete_wins() -> None:
    found = made(*FINALS)
    assert found.winner == FINALS[1][0]
    assert found.runner_up == FINALS[0][0]
    assert found.stock == FINALS[3][0]
    assert found.difference == paired_difference({"text": FINALS[0][1]}, {"text": FINALS[1][1]})


def test_the_table_has_every_model_once_in_a_fixed_order() -> None:
    rows = made(*FINALS).rows
    assert [row.roles for row in rows] == [
        ("teacher",),
        ("winner", "depth only"),
        ("best stock", ),
        ("runner-up",),
        (FINALIST,),
        ("random",),
        ("width only",),
    ]  # fmt: skip
    assert rows == made(*reversed(FINALS)).rows
    assert rows[1].difference is None
    for row in rows[2:]:
        assert row.difference is not None
        assert row.difference.mean == pytest.approx((row.val_loss or 0) - (rows[1].val_loss or 0))


def test_a_stock_finalist_can_win() -> None:
    found = made(*FINALS[:3], one(3, -0.2, STOCK, stock=True))
    assert found.winner == found.stock
    assert found.rows[1].roles == ("winner", "best stock")


def test_a_better_baseline_does_not_win_but_is_told() -> None:
    verdict, note = made(*FINALS).notes
    assert "random" in note
    assert FINALS[4][0].architecture.key in note
    assert verdict == made(*FINALS).verdict
    assert made(*FINALS[:4]).notes == [made(*FINALS[:4]).verdict]


def test_the_verdict_says_when_two_are_not_distinguishable() -> None:
    clear, close = made(*FINALS), made(one(0, 0.001, FINALIST), *FINALS[1:])
    assert "not distinguishable" not in clear.verdict
    assert "0.1000 nats a token higher" in clear.verdict
    assert close.verdict.startswith(f"not distinguishable from the runner-up, {FINALS[0][0].architecture.key}")
    assert "over 64 validation windows" in close.verdict
    assert "no runner-up" in made(FINALS[1], FINALS[5]).verdict


def test_identical_models_are_not_distinguishable_and_the_smaller_wins() -> None:
    twin = replace(FINALS[1][0], architecture=FINALS[7 - 2][0].architecture, parameters=1)
    found = made(FINALS[1], (twin, FINALS[1][1]))
    assert (found.winner, found.runner_up) == (twin, FINALS[1][0])
    assert found.difference is not None
    assert (found.difference.low, found.difference.high) == (0, 0)
    assert "not distinguishable" in found.verdict


def test_a_failed_final_is_shown_with_its_reason_and_loses() -> None:
    failed = final(6, "FAIL", roles=(FINALIST,))
    found = made(*FINALS, failed=failed)
    assert found.rows[-1].reason == "NonFiniteLoss: nan"
    assert found.rows[:-1] == made(*FINALS).rows
    with pytest.raises(NothingFeasibleError, match="NonFiniteLoss: nan; give --finalists 0"):
        made(FINALS[4], failed=failed)


def test_the_terminal_table_fits_and_says_what_failed() -> None:
    console = Console(width=WIDTH, file=io.StringIO())
    table = comparison_table(made(*FINALS, failed=final(6, "FAIL", roles=(FINALIST,))))
    console.print(fitted(table, console, LESS_NEEDED["final"]))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= WIDTH
    assert any("failed: NonFiniteLoss: nan" in line for line in lines)
    assert any("not distinguishable" in line for line in lines)


def test_files_have_every_row_and_every_column() -> None:
    found = made(*FINALS)
    read = list(csv.DictReader(io.StringIO(comparison_csv(found))))
    assert [line["roles"] for line in read] == [", ".join(row.roles) for row in found.rows]
    assert [float(line["val_loss"]) for line in read] == [row.val_loss for row in found.rows]
    assert [line["low"] for line in read] == [str(row.difference.low) if row.difference else "" for row in found.rows]
    lines = comparison_markdown(found).splitlines()
    assert len(lines) == 2 + len(found.rows)
    assert len({line.count("|") for line in lines}) == 1


def test_several_texts_and_readings_on_test_text_are_columns() -> None:
    losses = {"val_loss/a": 1.25, "val_loss/b": 2.75}
    several = [(replace(record, metrics=losses), window) for record, window in FINALS]
    finals, windows = [record for record, _ in several], {record.name: {"a": w, "b": w} for record, w in several}
    found = compare(finals, windows, {"a": np.full(64, 1.0), "b": np.full(64, 2.0)}, 8_000_000)
    assert (found.rows[0].val_loss, found.rows[0].losses) == (1.5, {"a": 1.0, "b": 2.0})
    assert found.rows[1].losses == {"a": 1.25, "b": 2.75}
    for text in (comparison_csv(found), comparison_markdown(found)):
        assert all(name in text.splitlines()[0] for name in ("a", "b"))
    assert on_test_table(found) is None
    assert on_test_markdown(found) == ""
    reading = Reading("wikitext-2", NON_OVERLAPPING, "token perplexity", 20.25, "per token", 2046, length=1024)
    reading = replace(reading, dtype="bfloat16")
    read_on_test = replace(
        found, rows=tuple(replace(row, test=(reading,)) if row.is_read else row for row in found.rows)
    )
    assert "wikitext-2 ppl" in comparison_csv(read_on_test).splitlines()[0]
    for text in (comparison_csv(read_on_test), on_test_markdown(read_on_test)):
        assert text.count("20.25") == sum(row.is_read for row in found.rows)
    assert on_test_notes(read_on_test) == [
        "wikitext-2 ppl: token perplexity, non-overlapping windows of 1,024, 2,046 tokens, in bfloat16"
    ]
    assert all(row.is_read == (row.val_loss is not None) for row in found.rows)


def test_downstream_tasks_have_their_standard_errors_in_every_table() -> None:
    found = made(*FINALS)
    how = "lm-evaluation-harness 0.4.13, zero-shot"
    readings = tuple(
        Reading("piqa", how, metric, 0.625, "share", documents=1838, dtype="float32", stderr=0.0125)
        for metric in ("acc", "acc_norm")
    )
    found = replace(found, rows=tuple(replace(row, test=readings) if row.is_read else row for row in found.rows))
    read = list(csv.DictReader(io.StringIO(comparison_csv(found))))
    for line, row in zip(read, found.rows, strict=True):
        names = ("piqa acc", "piqa acc_norm", "piqa acc stderr", "piqa acc_norm stderr")
        expected = ["0.625", "0.625", "0.0125", "0.0125"] if row.is_read else [""] * 4
        assert [line[name] for name in names] == expected
        assert line["reason"] == row.reason
    assert on_test_markdown(found).count("62.50% ± 1.25%") == 2 * sum(row.is_read for row in found.rows)
    assert on_test_notes(found)[0] == f"piqa acc: acc, {how}, 1,838 documents, in float32"
