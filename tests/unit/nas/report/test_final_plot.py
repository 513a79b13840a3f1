"""The plots of the final comparison, and of what was screened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_search import MadeUp
from matplotlib.image import imread
from numpy.typing import NDArray
from tracking_reference import record

from nas.choosing.bootstrap import Difference
from nas.choosing.comparison import Comparison
from nas.report.final_report import plot_finals
from nas.report.plots import plot_pareto
from nas.report.screening_report import plot_screening


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.report.plots.DPI", 30)


@pytest.fixture
def comparison(tiny_teacher_folder: Path, tmp_path: Path) -> Comparison:
    made = MadeUp(tiny_teacher_folder, tmp_path / "out")
    made.trials(6)
    found = made.conclude()[0].comparison
    assert found is not None
    return found


def test_the_plot_of_the_finals_shows_every_interval(comparison: Comparison, tmp_path: Path) -> None:
    def picture(found: Comparison) -> NDArray[np.floating]:
        return imread(plot_finals(found, tmp_path / "final.png"))

    before = picture(comparison)
    assert np.array_equal(before, picture(comparison))
    last = comparison.rows[-1]
    assert last.difference is not None
    wider = replace(last, difference=replace(last.difference, low=last.difference.low - 0.2))
    assert not np.array_equal(before, picture(replace(comparison, rows=(*comparison.rows[:-1], wider))))


def test_a_failed_final_has_no_place_in_the_plot(comparison: Comparison, tmp_path: Path) -> None:
    failed = replace(comparison.rows[-1], roles=("failed",), val_loss=None, difference=None, reason="out of memory")
    more = replace(comparison, rows=(*comparison.rows, failed))
    pictures = [imread(plot_finals(one, tmp_path / "final.png")) for one in (comparison, more)]
    assert np.array_equal(*pictures)


def test_an_interval_at_zero_is_drawn(comparison: Comparison, tmp_path: Path) -> None:
    equal = replace(comparison.rows[-1], difference=Difference(0.0, 0.0, 0.0, 16))
    pictures = [
        imread(plot_finals(replace(comparison, rows=(*comparison.rows[:-1], one)), tmp_path / "final.png"))
        for one in (equal, comparison.rows[-1])
    ]
    assert not np.array_equal(*pictures)


def test_architectures_that_lie_far_away_do_not_squeeze_the_trials(tmp_path: Path) -> None:
    records = [record(number, val_loss=2.0 + number / 100) for number in range(4)]
    known = {one.architecture.key: 3.0 + one.number / 100 for one in records}
    far = [
        imread(plot_screening({**known, "one": one, "two": 9.0}, records, tmp_path / "screening.png"))
        for one in (8.0, 80.0)
    ]
    near = imread(plot_screening({**known, "one": 3.04, "two": 9.0}, records, tmp_path / "screening.png"))
    assert np.array_equal(*far)
    assert not np.array_equal(far[0], near)


def test_the_sizes_of_what_was_screened_are_in_the_plot_of_sizes(tmp_path: Path) -> None:
    records = [record(number, val_loss=2.0 + number / 100) for number in range(4)]
    pictures = [
        imread(plot_pareto(records, tmp_path / "pareto.png", 1.5, None, screened))
        for screened in ([], [(5_000_000, 2.2), (5_000_003, 2.1), (5_000_002, 2.4)])
    ]
    assert not np.array_equal(pictures[0][: len(pictures[0]) // 2], pictures[1][: len(pictures[1]) // 2])
