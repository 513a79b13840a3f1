"""The trials in memory of the only writer: at any time what the database holds, and read only after a change."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.study.only_writer import OnlyWriter

SIZE, KIND = IntDistribution(1, 9), CategoricalDistribution(("a", None, 2))
VALUES = st.sampled_from([1, "a", None, [1, 2], (3, 4), {"a": 0.1}, {5: 6}, math.pi, True])
LOSSES = st.sampled_from([0.1, 1 / 3, math.inf, -math.inf, math.nan])
Step = Callable[[OnlyWriter, int], Any]

STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(lambda one, v: lambda s, t: s.set_trial_user_attr(t, one, v), st.sampled_from("ab"), VALUES),
    st.builds(lambda one, v: lambda s, t: s.set_trial_system_attr(t, one, v), st.sampled_from("ab"), VALUES),
    st.builds(lambda at, v: lambda s, t: s.set_trial_intermediate_value(t, at, v), st.integers(0, 2), LOSSES),
    st.builds(lambda v: lambda s, t: s.set_trial_param(t, "size", v, SIZE), st.integers(1, 9)),
    st.builds(lambda v: lambda s, t: s.set_trial_param(t, "kind", v, KIND), st.integers(0, 2)),
    st.builds(
        lambda state, v: lambda s, t: s.set_trial_state_values(t, state, [v]),
        st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED]),
        st.floats(0, 1),
    ),
    st.just(lambda s, t: s.set_trial_state_values(t, TrialState.RUNNING)),
    st.just(lambda s, t: s.get_trial(t)),
    st.just(lambda s, t: s.get_all_trials(1)),
)


def storage_in(folder: Path) -> OnlyWriter:
    storage = OnlyWriter(RDBStorage(f"sqlite:///{folder / 'studies.db'}"))
    storage.create_new_study([StudyDirection.MINIMIZE], "one")
    return storage


def shown(trials: list[FrozenTrial]) -> list[str]:
    """All of ``trials``, in words: nan differs from itself. A dictionary of a database has an order of its own."""
    dictionaries = ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
    simple = ("number", "state", "values", "datetime_start", "datetime_complete")
    return [
        repr([getattr(one, name) for name in simple] + [sorted(getattr(one, name).items()) for name in dictionaries])
        for one in trials
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), STEPS), max_size=25))
def test_memory_is_at_any_time_what_the_database_holds(steps: list[tuple[int, Step]]) -> None:
    storage = OnlyWriter(RDBStorage("sqlite:///:memory:"))
    study = storage.create_new_study([StudyDirection.MINIMIZE], "one")
    trials = [storage.create_new_trial(study)]
    for place, step in steps:
        if place == len(trials):
            trials.append(storage.create_new_trial(study, optuna.trial.create_trial(state=TrialState.WAITING)))
        trial = trials[place % len(trials)]
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # a trial that has ended cannot change
            step(storage, trial)
        held = storage._backend.get_all_trials(study)
        assert shown(storage.get_all_trials(study)) == shown(held)
        assert shown([storage.get_trial(one) for one in trials]) == shown(held)


def test_who_has_a_trial_keeps_it_as_it_was(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    trial = storage.create_new_trial(1)
    (before,) = storage.get_all_trials(1, deepcopy=False)
    storage.set_trial_user_attr(trial, "a", 1)
    storage.get_trial(trial).user_attrs["a"] = 2
    assert before.user_attrs == {}
    assert storage.get_all_trials(1)[0].user_attrs == {"a": 1}


def test_a_change_whose_answer_is_lost_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_in(tmp_path)
    trial = storage.create_new_trial(1)
    storage.get_all_trials(1)
    written = storage._backend.set_trial_user_attr

    def lost(*given: Any, **named: Any) -> None:
        written(*given, **named)
        raise ConnectionError

    monkeypatch.setattr(storage._backend, "set_trial_user_attr", lost)
    with pytest.raises(ConnectionError):
        storage.set_trial_user_attr(trial, "a", 1)
    assert storage.get_trial(trial).user_attrs == {"a": 1}


def test_what_others_have_written_is_seen_after_forget(tmp_path: Path) -> None:
    mine, other = storage_in(tmp_path), OnlyWriter(RDBStorage(f"sqlite:///{tmp_path / 'studies.db'}"))
    trial = mine.create_new_trial(1)
    assert len(mine.get_all_trials(1)) == 1
    other.set_trial_user_attr(trial, "a", 1)
    other.create_new_trial(1)
    mine.forget()
    assert [one.user_attrs for one in mine.get_all_trials(1)] == [{"a": 1}, {}]


def test_no_trial_is_read_again_because_others_run(tmp_path: Path) -> None:
    """A proposal reads the new trial, and not the fifty that run."""
    storage = storage_in(tmp_path)
    study = optuna.load_study(study_name="one", storage=storage)
    running = [study.ask({"size": SIZE}) for _ in range(50)]
    study.get_trials()
    read: list[FrozenTrial] = []
    built = storage._backend._build_frozen_trial_from_trial_model
    storage._backend._build_frozen_trial_from_trial_model = lambda model: read.append(model) or built(model)
    study.ask({"size": SIZE})
    study.get_trials()
    assert len(read) == 1
    read.clear()
    running[0].report(1.0, 0)
    running[0].set_user_attr("a", 1)
    assert study.get_trials()[0].intermediate_values == {0: 1.0}
    assert not read
