"""What is weighed against the loss: who beats whom, and what a reader is shown of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from tracking_reference import record

from nas.choosing.selection import front, front_values, ranking, weighed
from nas.report.front_report import front_markdown, plot_front
from nas.study.objectives import dominated_by, parse_objectives
from nas.study.records import LATENCY, MEMORY, TrialRecord
from search_spaces.errors import InputError

Points = list[tuple[float, ...]]
NUMBERS = st.integers(0, 4).map(float)
ALL = ("loss", "params", "memory", "latency")


def trial(number: int, loss: float, milliseconds: float | None, megabytes: float = 1.0) -> TrialRecord:
    latency = {} if milliseconds is None else {LATENCY: milliseconds}
    return record(number, val_loss=loss, metrics={MEMORY: 1e6 * megabytes, **latency})


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("loss,speed", "'speed': unknown"),
        ("latency", "'loss' is missing"),
        ("loss,loss", "given twice"),
        ("", "'': unknown"),
    ],
)
def test_wrong_objectives_name_the_rule_and_the_known_ones(text: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        parse_objectives(text)


def test_the_loss_comes_first() -> None:
    assert parse_objectives("latency, loss,params") == ("loss", "params", "latency")
    assert parse_objectives("loss") == ("loss",)


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_of_the_loss_alone_it_is_the_rank(losses: list[float]) -> None:
    points: Points = [(loss,) for loss in losses]
    assert [dominated_by(point, points) for point in points] == [sum(b < a for b in losses) for a in losses]


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_nobody_on_the_front_is_beaten_and_everybody_else_is_by_one_on_it(points: Points) -> None:
    best = [point for point in points if not dominated_by(point, points)]
    assert best
    for point in points:
        assert (dominated_by(point, best) > 0) == (point not in best)
        assert dominated_by(point, [point]) == 0


def test_the_front_and_the_order_of_finalists() -> None:
    records = [trial(0, 3.0, 2.0), trial(1, 2.0, 5.0), trial(2, 2.5, 5.0), trial(3, 4.0, 1.0), trial(4, 2.2, 9.0)]
    records += [record(5, "PRUNED"), record(6, "FAIL")]
    objectives = ("loss", "latency")
    assert [one.number for one in front(records, objectives)] == [1, 0, 3]
    assert [one.number for one in weighed(records, objectives)][:3] == [1, 0, 3]
    assert weighed(records, ("loss",)) == ranking(records)
    assert [one.number for one in front(records, ("loss",))] == [1]


def test_what_was_not_measured_is_no_advantage() -> None:
    records = [trial(0, 3.0, None), trial(1, 3.0, 4.0)]
    assert [one.number for one in front(records, ("loss", "latency"))] == [1]
    assert front_values(records[:1], ("loss", "latency"))[0]["latency"] is None


def test_table_and_values_hold_the_front() -> None:
    records = [trial(0, 3.0, 2.0, 12.5), trial(1, 2.0, 5.0, 11.0), trial(2, 3.5, 6.0, 13.0)]
    assert front_markdown(records, ("loss", "memory", "latency")) == (
        "| architecture | val loss | MB | ms a token |\n"
        "| :--- | ---: | ---: | ---: |\n"
        f"| {records[1].architecture.key} | 2.0000 | 11.0 | 5.00 |\n"
        f"| {records[0].architecture.key} | 3.0000 | 12.5 | 2.00 |\n"
    )
    values = front_values(records, ALL)
    assert values[0] == {
        "architecture": records[1].architecture.key,
        "loss": 2.0,
        "params": records[1].parameters,
        "memory": 11e6,
        "latency": 5.0,
    }


def test_the_picture_shows_front_and_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.report.plots.DPI", 30)
    records = [trial(0, 3.0, 2.0), trial(1, 2.0, 5.0), trial(2, 3.5, 6.0)]
    drawn = [
        imread(plot_front(some, ALL, tmp_path / "front.png", winner))
        for some, winner in ((records, None), (records[:2], None), (records, records[1].architecture))
    ]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
