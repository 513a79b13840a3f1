"""Budgets: the accepted spellings, their bands, and errors that say what to do."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search_spaces.budget import check_budgets, nearest_feasible, parse_budget, parse_budgets
from search_spaces.errors import InputError

TEACHER = 354_823_168
COUNTS = (*range(60_000_000, TEACHER, 1_000_003), TEACHER)


@pytest.mark.parametrize("text", ["260M", "0.26B", "260_000_000", "260000000", "0.26G", " 260m ", "260000K"])
def test_spellings_of_one_budget(text: str) -> None:
    budget = parse_budget(text, TEACHER, COUNTS)
    assert (budget.minimum, budget.maximum) == (247_000_000, 260_000_000)


def test_share_of_the_teacher() -> None:
    budget = parse_budget("70%", TEACHER, COUNTS, tolerance=0.1)
    assert budget.maximum == int(0.7 * TEACHER)
    assert 0 <= budget.minimum - 0.63 * TEACHER < 1


@pytest.mark.parametrize("text", ["abc", "-5", "", "0", "1e8", "260MM", "M", "300M,x"])
def test_a_budget_that_cannot_be_read_names_the_value_and_the_way_out(text: str) -> None:
    """The message is the same with and without a teacher."""
    with pytest.raises(InputError) as early:
        check_budgets(text)
    with pytest.raises(InputError) as caught:
        parse_budgets(text, TEACHER, COUNTS, 0.05)
    assert str(early.value) == str(caught.value)
    assert repr(text.split(",")[-1]) in str(caught.value)
    assert "write 260M" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "share"), [("0.6", "60%"), ("0.25", "25%"), ("0.0005K", "0.05%")])
def test_less_than_one_parameter_may_be_meant_as_a_share(text: str, share: str) -> None:
    with pytest.raises(InputError, match=f"less than one parameter; a share of the teacher is written as {share}"):
        check_budgets(text)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 5000,
        "9" * 5000 + "%",
        "0." + "0" * 5000 + "1B",
        "1_" * 5000,
        "9999999999999999G",
        "1" + "0" * 16,
        "x" * 5000,
    ],
)
def test_a_number_that_no_model_has_is_one_short_line(text: str) -> None:
    for read in (check_budgets, lambda one: parse_budgets(one, TEACHER, COUNTS, 0.05)):
        with pytest.raises(InputError, match="write 260M") as caught:
            read(text)
        assert len(str(caught.value)) < 300


def test_a_long_list_of_budgets_is_not_repeated() -> None:
    with pytest.raises(InputError, match="overlap") as caught:
        parse_budgets(",".join(["260M"] * 2000), TEACHER, COUNTS, 0.05)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["1M", "10G", "700%"])
def test_wrong_budget_names_value_range_and_way_out(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text, TEACHER, COUNTS)
    message = str(caught.value)
    assert repr(text) in message
    assert "60,000,000 to 354,823,168" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["1M", "10G", "400M"])
def test_nearest_feasible_budget_that_is_named_works(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text, TEACHER, COUNTS)
    named = re.search(r"nearest feasible budget is (\d+)", str(caught.value))
    assert named is not None
    parse_budget(named[1], TEACHER, COUNTS)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0])
def test_tolerance_outside_its_range_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance"):
        parse_budget("260M", TEACHER, COUNTS, tolerance)


@given(
    st.sets(st.integers(100, 10_000), min_size=1, max_size=20).map(sorted),
    st.integers(1, 20_000),
    st.floats(0, 0.5),
)
def test_nearest_feasible_is_feasible_and_nothing_nearer_is(counts: list[int], budget: int, tolerance: float) -> None:
    def feasible(candidate: int) -> bool:
        return any((1 - tolerance) * candidate <= count <= candidate for count in counts)

    assume(not feasible(budget))
    nearest = nearest_feasible(budget, counts, tolerance)
    assert feasible(nearest)
    nearer = (budget + sign * step for step in range(abs(nearest - budget)) for sign in (1, -1))
    # budgets above the largest model are never suggested, although their bands may contain it
    assert not any(feasible(one) for one in nearer if one <= counts[-1])


def test_several_budgets_come_largest_first_under_names_that_can_be_folders() -> None:
    found = parse_budgets("160_000_000, 70%,0.2B", TEACHER, COUNTS, 0.05)
    assert [one.maximum for one in found] == [int(0.7 * TEACHER), 200_000_000, 160_000_000]
    assert [one.label for one in found] == ["70pct", "0.2B", "160000000"]
    assert found[1] == parse_budget("0.2B", TEACHER, COUNTS, 0.05)


@pytest.mark.parametrize("text", ["260M,250M", "200M,200M", "260M,247M"])
def test_budgets_whose_bands_overlap_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"overlap; leave one out, or give a --tolerance below 0\.05"):
        parse_budgets(text, TEACHER, COUNTS, 0.05)
    parse_budgets("260M,250M", TEACHER, COUNTS, 0.03)


@pytest.mark.parametrize("text", ["260M,", ",", "260M,,200M"])
def test_an_empty_budget_among_several_is_named(text: str) -> None:
    with pytest.raises(InputError, match="budget ''"):
        parse_budgets(text, TEACHER, COUNTS, 0.05)
