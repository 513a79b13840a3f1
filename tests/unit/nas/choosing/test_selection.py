from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st
from tracking_reference import record

from nas.choosing.selection import STATES, best, best_stock, counts, listing, pareto_front, ranking
from nas.study.records import TrialRecord
from search_spaces.architecture import Architecture


@st.composite
def trials(draw: st.DrawFn) -> list[TrialRecord]:
    """Few distinct losses and sizes, so that ties are common."""
    states = draw(st.lists(st.sampled_from(STATES), max_size=8))
    return [
        record(
            number,
            state,
            draw(st.integers(0, 4)),
            stock=draw(st.booleans()),
            parameters=draw(st.integers(1, 4)),
            architecture=Architecture.uniform(draw(st.integers(1, 3)), 8, 1, 8),
            val_loss=draw(st.integers(1, 4)) / 2 if state == "COMPLETE" else None,
        )
        for number, state in enumerate(states)
    ]


def beats(one: TrialRecord, other: TrialRecord) -> bool:
    assert one.val_loss is not None
    assert other.val_loss is not None
    ahead = one.val_loss < other.val_loss or one.parameters < other.parameters
    return ahead and one.val_loss <= other.val_loss and one.parameters <= other.parameters


@given(trials())
def test_no_complete_trial_is_better_than_the_winner(records: list[TrialRecord]) -> None:
    complete = [one for one in records if one.state == "COMPLETE"]
    winner = best(records)
    if winner is None:
        assert not complete
        return
    losses = [one.val_loss for one in complete if one.val_loss is not None]
    assert winner.val_loss == min(losses)
    level = [one for one in complete if one.val_loss == winner.val_loss]
    assert winner.parameters == min(one.parameters for one in level)
    smallest = [one for one in level if one.parameters == winner.parameters]
    assert winner.architecture.key == min(one.architecture.key for one in smallest)


def test_a_tie_in_loss_and_size_goes_to_the_first_key_whichever_trial_came_first() -> None:
    late, early = (Architecture.uniform(depth, 8, 1, 8) for depth in (2, 1))
    tied = [record(number, architecture=one, parameters=7, val_loss=1.0) for number, one in enumerate((late, early))]
    assert best(tied) == tied[1]


@given(trials())
def test_a_low_loss_of_a_trial_that_did_not_complete_never_wins(records: list[TrialRecord]) -> None:
    tempting = [
        record(100 + place, state, 2, curve=((0, 9.0), (1024, 0.001))) for place, state in enumerate(STATES[1:])
    ]
    assert best([*records, *tempting]) == best(records)
    assert pareto_front([*records, *tempting]) == pareto_front(records)


@given(trials())
def test_the_order_of_the_records_does_not_matter(records: list[TrialRecord]) -> None:
    for order in permutations(records[:4]):
        same = list(order)
        assert best(same) == best(records[:4])
        assert ranking(same) == ranking(records[:4])
        assert pareto_front(same) == pareto_front(records[:4])


@given(trials())
def test_the_best_stock_candidate_is_the_winner_among_stock_ones(records: list[TrialRecord]) -> None:
    winner, stock = best(records), best_stock(records)
    assert stock == best([one for one in records if one.stock])
    if winner is not None and winner.stock:
        assert stock == winner


@given(trials())
def test_the_front_is_what_nothing_beats(records: list[TrialRecord]) -> None:
    complete, front = ranking(records), pareto_front(records)
    assert all(not beats(one, member) for one in complete for member in front)
    left_out = [one for one in complete if one not in front]
    level = {(one.parameters, one.val_loss) for one in front}
    for one in left_out:
        beaten = any(beats(member, one) for member in front)
        assert beaten or (one.parameters, one.val_loss) in level
    sizes = [one.parameters for one in front]
    assert sizes == sorted(set(sizes))
    assert not complete or front[-1] == best(records)


@given(trials())
def test_a_listing_has_every_trial_once_and_the_ranking_first(records: list[TrialRecord]) -> None:
    listed = listing(records)
    assert sorted(one.number for one in listed) == sorted(one.number for one in records)
    ranked = ranking(records)
    assert listed[: len(ranked)] == ranked
    places = [STATES.index(one.state) for one in listed]
    assert places == sorted(places)


@given(trials())
def test_counts_name_every_state_and_add_up(records: list[TrialRecord]) -> None:
    counted = counts(records)
    assert tuple(counted) == STATES
    assert sum(counted.values()) == len(records)
    assert all(counted[state] == sum(one.state == state for one in records) for state in STATES)
