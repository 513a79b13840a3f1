"""Standings count dominating points as the definition does, in whatever order points come and change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.study.objectives import Point, dominated_by, places
from nas.study.standings import Standings

values = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("inf")])
changes = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.tuples(st.integers(0, 90), st.tuples(*[values] * width)), min_size=1, max_size=120)
)


@given(changes)
def test_counts_are_those_of_the_definition_after_every_change(puts: list[tuple[int, Point]]) -> None:
    standings, points = Standings(), dict[int, Point]()
    for key, point in puts:
        standings.put(key, point)
        points[key] = point
    counts = {key: dominated_by(point, points.values()) for key, point in points.items()}
    assert {key: standings.dominated_by(key) for key in points} == counts
    assert list(counts.values()) == places(list(points.values()))
    for key, count in counts.items():
        assert standings.better(key) == sum(other < count for other in counts.values())
    assert len(standings) == len(points)


def test_a_key_without_a_point_has_no_place() -> None:
    with pytest.raises(KeyError):
        Standings().dominated_by("nobody")
