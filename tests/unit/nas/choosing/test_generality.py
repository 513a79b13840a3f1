"""What students lose on other text: figures against the teacher's, and how they are shown."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from tracking_reference import final

from nas.choosing.comparison import Comparison, ComparisonRow, compare
from nas.choosing.generality import excess_of, excesses
from nas.report.generality_report import generality_markdown, generality_table
from nas.study.records import FinalRecord
from trials.evaluate.perplexity import NON_OVERLAPPING
from trials.evaluate.reading import TOKEN_PERPLEXITY, Reading

TEACHER = {"own": 2.0, "code": 1.0}
STUDENTS = ({"own": 2.25, "code": 2.0}, {"code": 1.5, "own": 2.5})  # the database may change the order


def made(texts: int) -> Comparison:
    """Two finals on one validation text or on two."""
    names = list(TEACHER)[:texts]
    finals: list[FinalRecord] = []
    windows = {}
    for place, losses in enumerate(STUDENTS):
        metrics = {f"val_loss/{name}": loss for name, loss in losses.items() if name in names} if texts > 1 else {}
        mean = sum(losses[name] for name in names) / texts
        finals.append(replace(final(place, val_loss=mean, roles=("finalist",)), metrics=metrics))
        windows[finals[-1].name] = {name: np.full(8, losses[name]) for name in names}
    return compare(finals, windows, {name: np.full(8, TEACHER[name]) for name in names}, 8_000_000)


def read(found: Comparison, *perplexities: float, metric: str = TOKEN_PERPLEXITY) -> Comparison:
    """``found`` with one reading a row, the teacher's first."""

    def row(one: ComparisonRow, value: float) -> ComparisonRow:
        return replace(one, test=(Reading("docs", NON_OVERLAPPING, metric, value, "per token"),))

    return replace(found, rows=tuple(map(row, found.rows, perplexities)))


def test_without_other_text_there_is_nothing_to_show() -> None:
    found = made(1)
    assert excesses(found) == ()
    assert generality_table(found) is None
    assert generality_markdown(found) == ""
    assert excesses(read(found, 10, 20, 30, metric="last-word accuracy")) == ()


def test_a_perplexity_is_taken_as_nats_above_the_teacher() -> None:
    first, second = excesses(read(made(1), 10, 20, 30))
    assert (first.own, second.own) == pytest.approx((0.25, 0.5))
    assert first.others == pytest.approx({"docs": math.log(2)})
    assert second.other == pytest.approx(math.log(3))


def test_further_validation_texts_are_other_text_by_their_own_teacher_loss() -> None:
    for one in excesses(read(made(2), 10, 20, 20)):
        losses = next(own for own in STUDENTS if own["own"] - 2.0 == pytest.approx(one.own))
        assert one.others == pytest.approx({"code": losses["code"] - 1.0, "docs": math.log(2)})
        assert one.other == pytest.approx((losses["code"] - 1.0 + math.log(2)) / 2)


def test_both_kinds_of_text_are_named_everywhere() -> None:
    found = read(made(2), 10, 20, 20)
    console = Console(width=80, record=True, file=None)
    table = generality_table(found)
    assert table is not None
    with console.capture() as capture:
        console.print(table)
    key = found.winner.architecture.key
    excess = excess_of(found, key)
    assert excess is not None
    for text in (capture.get(), generality_markdown(found)):
        assert key in text
        assert f"{excess.own:+.4f}" in text
        assert f"{excess.other:+.4f}" in text
    assert "on the text it was calibrated on" in generality_markdown(found)
    assert f"{excess.own:+.3f} on the text it was calibrated on" in excess.sentence
    assert f"{excess.other:+.3f} on other text (code" in excess.sentence
    assert excess_of(found, "d1-h1-a1-m1") is None
