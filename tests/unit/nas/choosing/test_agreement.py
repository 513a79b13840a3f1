"""Whether early rankings agree with late ones, and over how many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.stats import kendalltau
from tracking_reference import RUNGS, final, record

from nas.choosing.agreement import ENOUGH, FEWEST, SURVIVORS, agreement, agreements, lines
from nas.report.plots import plot_agreement
from nas.study.records import TrialRecord

LAST = RUNGS[-1]


def trial(number: int, losses: list[float], state: str = "COMPLETE") -> TrialRecord:
    return record(number, state, curve=tuple(zip(RUNGS, losses, strict=False)))


def pairs(early: list[float], late: list[float]) -> list[tuple[float, float]]:
    return list(zip(early, late, strict=True))


@given(st.lists(st.integers(0, 99), min_size=FEWEST, max_size=12, unique=True))
def test_equal_rankings_agree_and_reversed_ones_disagree(losses: list[float]) -> None:
    assert agreement("", "", 0, pairs(losses, [2 * loss + 1 for loss in losses])).tau == pytest.approx(1)
    assert agreement("", "", 0, pairs(losses, [-loss for loss in losses])).tau == pytest.approx(-1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=FEWEST, max_size=12))
def test_tau_is_that_of_scipy_ties_included(losses: list[tuple[int, int]]) -> None:
    found, expected = agreement("", "", 0, losses), kendalltau(*zip(*losses, strict=True)).statistic
    assert found.tau == (None if np.isnan(expected) else pytest.approx(expected))
    assert (found.low is None) == (found.high is None) == (found.tau is None or len(losses) < ENOUGH)
    if found.low is not None and found.high is not None:
        assert -1.0001 <= found.low <= found.high <= 1.0001


def test_the_interval_narrows_with_more_architectures_and_holds_what_more_of_them_would_give() -> None:
    generator = np.random.default_rng(1)
    early = generator.normal(size=400)
    late = early + generator.normal(size=400)
    many, few = (agreement("", "", 0, pairs(list(early[:n]), list(late[:n]))) for n in (400, 20))
    assert (few.high or 0) - (few.low or 0) > 3 * ((many.high or 0) - (many.low or 0))
    assert (few.low or 0) < (many.tau or 0) < (few.high or 0)


@pytest.mark.parametrize("count", range(FEWEST))
def test_fewer_than_three_pairs_are_too_few(count: int) -> None:
    found = agreement("", "", 0, [(1.0, 1.0), (2.0, 2.0)][:count])
    assert (found.tau, str(found)) == (None, f"too few (n = {count})")


@pytest.mark.parametrize("count", range(FEWEST, ENOUGH + 2))
def test_an_interval_over_fewer_than_eight_is_none(count: int) -> None:
    """All resamples of a few pairs that agree agree too, which says nothing about further architectures."""
    found = agreement("", "", 0, pairs(list(map(float, range(count))), list(map(float, range(count)))))
    assert found.tau == pytest.approx(1)
    enough = count >= ENOUGH
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1)) if enough else (None, None)
    expected = f"+1.00 [+1.00, +1.00] (n = {count})" if enough else f"+1.00, too few to tell (n = {count})"
    assert str(found) == expected


def test_nothing_is_said_where_all_are_equal() -> None:
    found = agreement("", "", 0, pairs([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert (found.tau, found.pairs) == (None, 3)
    assert "undefined" in str(found)


def test_every_rung_is_compared_with_the_last_over_those_that_reached_both() -> None:
    records = [
        trial(0, [5.0, 3.0, 2.0, 1.0]),
        trial(1, [6.0, 2.9, 2.1, 1.1]),
        trial(2, [7.0, 2.8, 2.2, 1.2]),
        trial(3, [1.0, 9.0], "PRUNED"),  # would turn the first rung's order round
        trial(4, [1.0], "RUNNING"),
        trial(5, [], "FAIL"),
    ]
    found = {one.name: (one.tokens, one.tau, one.pairs) for one in agreements(records)}
    assert found == {
        "zero_shot": (0, pytest.approx(1), 3),
        "1024_tokens": (1024, pytest.approx(-1), 3),
        "2048_tokens": (2048, pytest.approx(1), 3),
    }


def test_finals_are_compared_with_their_own_trials() -> None:
    records = [trial(0, [5.0, 3.0, 2.0, 1.0])]
    finals = [final(place, val_loss=4.0 - loss, metrics={"trial_loss": loss}) for place, loss in enumerate((1, 2, 3))]
    last = agreements(records, [*finals, final(9, "FAIL")])[-1]
    assert (last.name, last.tokens, last.tau, last.pairs) == ("final", LAST, pytest.approx(-1), 3)
    assert agreements([], []) == []


def test_survivors_are_called_so() -> None:
    found = agreements([trial(number, [5.0, 3.0, 2.0, 1.0 + number]) for number in range(3)])
    assert SURVIVORS in lines(found, stopped_early=True)
    assert SURVIVORS not in lines(found, stopped_early=False)
    assert lines([], stopped_early=True) == []


def test_the_plot_shows_taus_and_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.report.plots.DPI", 30)
    many = agreements([trial(number, [5.0, 3.0 - number, 2.0, 1.0 + number]) for number in range(4)])
    fewer = agreements([trial(number, [5.0, 3.0 - number, 2.0, 1.0 + number]) for number in range(3)])
    pictures = [imread(plot_agreement(found, tmp_path / "plot.png")) for found in (many, fewer, many[:1], [])]
    assert all(not np.array_equal(pictures[0], other) for other in pictures[1:])


def test_the_plot_draws_a_tau_of_few_pale_and_hatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("nas.report.plots.save", lambda figure, path: figures.append(figure) or path)
    few, enough = (
        agreement("", f"{count}", 0, pairs(list(map(float, range(count))), list(map(float, range(count)))))
        for count in (ENOUGH - 1, ENOUGH)
    )
    for found in ([few, enough], [enough]):
        plot_agreement(found, tmp_path / "plot.png")
    first, second = (figure.axes[0] for figure in figures)
    hatched = [bar for bar in first.patches if bar.get_hatch()]
    assert [bar.get_center()[0] for bar in hatched] == [0]
    assert len(first.patches) == 2
    assert not [bar for bar in second.patches if bar.get_hatch()]
    assert first.get_legend().get_texts()[0].get_text() == "fewer than 8: too few to tell"
    assert second.get_legend() is None
    words = [text.get_text() for text in first.texts]
    assert words == [f"+1.00, too few to tell\n(n = {ENOUGH - 1})", f"+1.00 [+1.00, +1.00]\n(n = {ENOUGH})"]
