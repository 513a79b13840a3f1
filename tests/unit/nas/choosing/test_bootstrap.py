"""When two models can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.choosing import bootstrap
from nas.choosing.bootstrap import paired_difference

GENERATOR = np.random.default_rng(0)
TEXT = GENERATOR.normal(3.0, 1.0, 64)  # windows differ far more than models do
Losses = dict[str, np.ndarray]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=20), st.integers(0, 5))
def test_identical_models_are_not_distinguishable(losses: list[float], seed: int) -> None:
    same = {"text": np.array(losses)}
    found = paired_difference(same, same, resamples=50, seed=seed)
    assert (found.mean, found.low, found.high, found.distinguishable) == (0, 0, 0, False)


def test_a_clearly_better_model_is_distinguishable_and_chance_is_not() -> None:
    worse = {"text": TEXT + 0.05 + GENERATOR.normal(0, 0.02, 64)}
    found = paired_difference(worse, {"text": TEXT})
    assert 0 < found.low < found.mean < found.high
    assert found.distinguishable
    assert found.mean == pytest.approx(0.05, abs=0.01)
    noise = GENERATOR.normal(0, 0.02, 64)
    assert not paired_difference({"text": TEXT + noise - noise.mean()}, {"text": TEXT}).distinguishable


def test_the_other_way_round_the_sign_turns() -> None:
    one, other = {"text": TEXT + GENERATOR.normal(0.01, 0.02, 64)}, {"text": TEXT}
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))


def test_the_interval_shrinks_with_windows_and_by_the_square_root() -> None:
    noise = GENERATOR.normal(0.01, 0.05, 6400)
    widths = []
    for count in (16, 160, 1600, 6400):
        found = paired_difference({"text": noise[:count]}, {"text": np.zeros(count)}, resamples=2000)
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[1] / widths[3] == pytest.approx(np.sqrt(40), rel=0.25)
    deviation = noise[:1600].std() / np.sqrt(1600)
    assert widths[2] == pytest.approx(2 * 1.96 * deviation, rel=0.1)  # what the normal approximation gives


def test_pairing_takes_out_what_the_windows_have_in_common() -> None:
    one, other = {"text": TEXT + GENERATOR.normal(0.01, 0.01, 64)}, {"text": TEXT}
    paired = paired_difference(one, other)
    shuffled = paired_difference({"text": GENERATOR.permutation(one["text"])}, other)
    assert paired.high - paired.low < 0.2 * (shuffled.high - shuffled.low)


def test_every_text_counts_alike_however_long() -> None:
    one: Losses = {"long": np.full(300, 1.0), "short": np.full(3, 2.0)}
    found = paired_difference(one, {name: np.zeros_like(losses) for name, losses in one.items()})
    assert (found.mean, found.low, found.high, found.windows) == (1.5, 1.5, 1.5, 303)


def test_the_same_seed_gives_the_same_interval_whatever_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = {"text": TEXT + GENERATOR.normal(0, 0.02, 64)}, {"text": TEXT}
    first = paired_difference(one, other)
    assert paired_difference(one, other) == first != paired_difference(one, other, seed=1)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 64 * 7)
    assert paired_difference(one, other) == first


@pytest.mark.parametrize("other", [{"text": TEXT[:-1]}, {"another": TEXT}, {}])
def test_losses_of_different_windows_are_refused(other: Losses) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference({"text": TEXT}, other)
