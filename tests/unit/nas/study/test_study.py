"""The study as the only state: feasible candidates, each once, and nothing lost or repeated over a restart."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import optuna
import pytest
from free_workers import FreeWorkers
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from nas.choosing.promotion import Promotion, promotes
from nas.planning.candidates import informed
from nas.planning.rungs import rungs
from nas.running.client import AGAIN, FAILURE, FINAL, MEMORY
from nas.running.tune_search import StudyScheduler, StudySearcher
from nas.study import sampler as sampler_module
from nas.study.sampler import BEST, INNER, NEWEST
from nas.study.study import SearchStudy
from nas.study.trial_records import SCREENED, TIMED
from search_spaces.architecture import Architecture
from search_spaces.budget import parse_budget, parse_budgets
from search_spaces.errors import InputError
from search_spaces.files import load_space
from search_spaces.shape import ModelShape

SHAPE = ModelShape("gpt2", 8, 256, 8, 32, 1024, 4096, 256, tied=True)
SPACE = load_space("default", SHAPE)
BAND = parse_budget("60%", SHAPE.parameters(SHAPE.full), SPACE.counts)
FEASIBLE = tuple(SPACE.feasible(BAND))
CUSTOM_FIRST = tuple(sorted(FEASIBLE, key=SHAPE.is_stock))[-12:]  # three custom shapes, then nine stock ones


def make_study(
    storage: str = "sqlite:///:memory:",
    sampler: str = "tpe",
    seed: int = 0,
    feasible: tuple[Architecture, ...] = FEASIBLE,
    **identity: object,
) -> SearchStudy:
    return SearchStudy(storage, "s", SPACE, feasible, sampler=sampler, seed=seed, identity=identity)


def loss_of(architecture: Architecture) -> float:
    return 3 + abs(architecture.depth - 6) / 10 + architecture.hidden / 1000


def advance(study: SearchStudy, trials: int, stopped: Collection[int] = range(2, 99, 3)) -> list[str]:
    """Ask and tell ``trials`` times; those whose numbers are in ``stopped`` are stopped early."""
    keys = []
    for _ in range(trials):
        candidate = study.ask()
        assert candidate is not None
        keys.append(candidate.architecture.key)
        study.report(candidate.number, 16, loss_of(candidate.architecture) + 1)
        if candidate.number in stopped:
            study.prune(candidate.number, {})
        else:
            study.complete(candidate.number, loss_of(candidate.architecture), {"tokens": 64.0})
    return keys


@pytest.mark.parametrize("sampler", INNER)
def test_candidates_are_feasible_distinct_and_follow_from_the_seed(sampler: str) -> None:
    keys = advance(make_study(sampler=sampler), 12)
    assert len(set(keys)) == 12
    assert set(keys) <= {one.key for one in FEASIBLE}
    assert advance(make_study(sampler=sampler), 12) == keys
    if sampler != "exhaustive":
        assert advance(make_study(sampler=sampler, seed=1), 12) != keys


def test_what_others_wrote_until_now_is_read_anew(tmp_path: Path) -> None:
    """As when a driver has waited for another one to end."""
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    mine, other = make_study(url), make_study(url)
    mine.finished()
    advance(other, 3)
    mine.read_anew()
    assert mine.finished() == 3
    assert mine.records() == other.records()
    candidate = mine.ask()
    assert candidate is not None
    mine.report(candidate.number, 16, 9.0)
    assert mine.rank_at(16, candidate.number).seen == 4


@pytest.mark.parametrize("count", [1_000, 1_300])
def test_of_thousands_of_trials_a_sampler_learns_from_the_best_and_the_newest(count: int) -> None:
    study = optuna.create_study()
    axes = {"x": FloatDistribution(0, 1)}
    losses = [float(loss) for loss in np.random.default_rng(0).permutation(count)]
    study.add_trials([create_trial(params={"x": 0.5}, distributions=axes, value=loss) for loss in losses])
    trials = study.get_trials()
    seen = sampler_module._Part(study, trials).get_trials(deepcopy=False)
    assert [one.number for one in seen] == sorted(one.number for one in seen)
    assert trials[-NEWEST:] == seen[-NEWEST:]
    assert len(seen) == BEST + NEWEST
    assert set(sorted(losses)[:BEST]) <= {one.value for one in seen}
    assert not sampler_module._Part(study, trials).get_trials(states=(TrialState.FAIL,))


def test_exhaustive_goes_through_the_band_and_ends() -> None:
    study = make_study(sampler="exhaustive")
    assert advance(study, len(FEASIBLE)) == [one.key for one in FEASIBLE]
    assert study.ask() is None


def test_a_continued_search_proposes_what_an_uninterrupted_one_would(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    whole = advance(make_study(), 14)
    first = advance(make_study(url), 9)
    second = advance(make_study(url), 5)
    assert first + second == whole


@pytest.mark.parametrize(
    "sampler", sorted(INNER.keys() - {"nsga2"})
)  # whose generations are of trials that it proposed itself
def test_a_trial_that_was_interrupted_changes_no_later_proposal(tmp_path: Path, sampler: str) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    whole = advance(make_study(sampler=sampler), 14)
    study = make_study(url, sampler)
    first = advance(study, 9)
    left = study.ask()
    assert left is not None
    study.report(left.number, 16, 9.0)
    again = make_study(url, sampler)
    again.requeue()
    assert first + advance(again, 5, stopped={12}) == whole  # numbers are one higher from the tenth on


def test_informed_candidates_come_first_and_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    ideas = informed(SHAPE, FEASIBLE)
    assert [name for name, _ in ideas] == ["depth-only", "width-only", "balanced"]
    study = make_study(url)
    study.queue(ideas)
    assert advance(study, 1) == [ideas[0][1].key]
    again = make_study(url)
    again.queue(ideas)
    assert advance(again, 2) == [one.key for _, one in ideas[1:]]
    assert advance(again, 1)[0] not in {one.key for _, one in ideas}
    assert [one.origin for one in again.records()] == ["depth-only", "width-only", "balanced", "tpe"]


def test_trials_left_running_are_queued_again_and_finished_ones_never(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = make_study(url)
    done = advance(study, 3)
    left = study.ask()
    assert left is not None
    study.report(left.number, 16, 5.0)

    again = make_study(url)
    assert again.requeue() == 1
    assert again.requeue() == 0
    assert again.finished() == 3
    retried = again.ask()
    assert retried is not None
    assert retried.architecture == left.architecture
    again.complete(retried.number, 4.0, {})
    keys = [one.architecture.key for one in again.records()]
    assert sorted(keys) == sorted([*done, left.architecture.key])


def test_study_made_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    make_study(url, tokens=64)
    make_study(url, tokens=64)
    with pytest.raises(InputError, match=r"'s' was made with tokens=64, not 128.*--study"):
        make_study(url, tokens=128)


def test_study_of_another_version_is_refused_without_asking_for_a_value_that_nobody_can_give(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    make_study(url, code_version=1)
    with pytest.raises(InputError, match=r"study 's' was made by another version of this program.*--study") as error:
        make_study(url, code_version=2)
    assert "old value" not in str(error.value)


def test_what_was_measured_is_there_after_a_restart_also_as_earlier_versions_kept_it(tmp_path: Path) -> None:
    url, study = f"sqlite:///{tmp_path / 'studies.db'}", make_study(f"sqlite:///{tmp_path / 'studies.db'}")
    old, *new = FEASIBLE
    study._study.set_user_attr(f"{SCREENED}/{old.key}", 1.5)
    study = make_study(url)
    values = {one.key: None if place % 7 == 0 else place / 8 for place, one in enumerate(new)}
    for place, (key, value) in enumerate(values.items()):
        study.keep(SCREENED, key, value)
        study.keep(TIMED, key, float(place))
    again = make_study(url)
    assert again.kept(SCREENED) == study.kept(SCREENED) == {old.key: 1.5, **values}
    assert again.kept(TIMED) == {key: float(place) for place, key in enumerate(values)}
    depths = {one.depth for one in FEASIBLE}
    assert len(again._study.user_attrs) <= 2 * len(depths) + 2  # and the identity, and the old one


def test_optuna_calls_the_value_by_its_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    optuna.create_study(storage=url, study_name="s", direction="minimize")  # as earlier versions made it
    advance(make_study(url), 2)
    assert optuna.load_study(storage=url, study_name="s").metric_names == ["val_loss"]
    assert "value_val_loss" in optuna.load_study(storage=url, study_name="s").trials_dataframe().columns


def test_storage_that_cannot_be_opened_is_an_input_error() -> None:
    with pytest.raises(InputError, match="storage 'nonsense'"):
        make_study("nonsense")
    with pytest.raises(InputError, match="cannot be opened"):
        make_study("sqlite:////no/such/folder/studies.db")


def test_non_finite_loss_is_a_failure_with_its_reason() -> None:
    study = make_study()
    candidate = study.ask()
    assert candidate is not None
    study.complete(candidate.number, math.nan, {})
    (record,) = study.records()
    assert (record.state, record.val_loss) == ("FAIL", None)
    assert record.reason == "final validation loss is nan"


class FakeTrial:
    """What the scheduler reads of a Tune trial."""

    def __init__(self, number: int) -> None:
        self.config = {"number": number}


def test_searcher_and_scheduler_tell_each_ending() -> None:
    study, heard, workers = make_study(sampler="exhaustive", feasible=CUSTOM_FIRST), [], FreeWorkers()
    searcher = StudySearcher(study, lambda candidate: {"key": candidate.architecture.key}, heard.append, workers)
    scheduler = StudyScheduler(study, heard.append, Promotion(study, last=64, halving=True))
    ids = ["good", "slow", "broken", "lost", "nan"]
    configs = {name: searcher.suggest(name) for name in ids}
    trials = {name: FakeTrial(config["number"]) for name, config in configs.items()}  # type: ignore[index]

    def reported(name: str, tokens: int, loss: float) -> str:
        return scheduler.on_trial_result(None, trials[name], {"tokens": tokens, "val_loss": loss})

    assert reported("good", 0, 9.0) == "CONTINUE"
    assert reported("good", 16, 4.0) == "CONTINUE"
    assert reported("slow", 0, 1.0) == "CONTINUE"  # zero-shot losses never stop a trial
    assert reported("slow", 16, 5.0) == "STOP"
    assert reported("good", 16, 4.0) == "CONTINUE"  # a restarted worker repeats itself
    assert reported("good", 64, 3.0) == "CONTINUE"
    assert reported("nan", 16, math.nan) == "STOP"
    searcher.on_trial_complete("slow", {"tokens": 16, "val_loss": 5.0})
    searcher.on_trial_complete("good", {"tokens": 64, "val_loss": 3.0, FINAL: True, "seconds": 1, "pid": 7})
    searcher.on_trial_complete("broken", {FAILURE: "NonFiniteLoss: step 3"})
    study.note(trials["lost"].config["number"], "OSError: share is gone")
    searcher.on_trial_complete("lost", None, error=True)
    searcher.on_trial_complete("nan", {"tokens": 16, "val_loss": math.nan})

    records = {one.number: one for one in study.records()}
    by_name = {name: records[trials[name].config["number"]] for name in ids}
    assert {name: one.state for name, one in by_name.items()} == {
        "good": "COMPLETE",
        "slow": "PRUNED",
        "broken": "FAIL",
        "lost": "FAIL",
        "nan": "FAIL",
    }
    assert by_name["good"].curve == ((0, 9.0), (16, 4.0), (64, 3.0))
    costs = {"flops_per_token", "kv_cache_bytes_per_token", "memory_bytes", "stored_bytes"}
    measured = {name: value for name, value in by_name["good"].metrics.items() if name not in costs}
    assert measured == {"tokens": 64.0, "seconds": 1.0}  # and nothing of what Tune adds
    assert by_name["good"].metrics.keys() >= costs
    assert by_name["slow"].curve == ((0, 1.0), (16, 5.0))
    assert by_name["broken"].reason == "NonFiniteLoss: step 3"
    assert "its process died" in str(by_name["lost"].reason)
    assert workers.lent == []
    assert "OSError: share is gone" in str(by_name["lost"].reason)
    assert "nan after 16 tokens" in str(by_name["nan"].reason)
    assert set(heard) == set(records)


def test_too_little_memory_ends_the_asking_and_leaves_the_trial_open() -> None:
    study = make_study(sampler="exhaustive", feasible=CUSTOM_FIRST)
    searcher = StudySearcher(study, lambda candidate: {}, lambda number: None, FreeWorkers())
    searcher.suggest("hungry")
    searcher.on_trial_complete("hungry", {FAILURE: "the worker died", AGAIN: True, MEMORY: True})
    assert searcher.out_of_memory
    assert searcher.suggest("next") == Searcher.FINISHED
    assert [one.state for one in study.records()] == ["RUNNING"]


def test_a_study_that_cannot_be_told_ends_the_search_with_its_error_and_not_inside_tune(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = make_study(sampler="exhaustive", feasible=CUSTOM_FIRST)
    searcher = StudySearcher(study, lambda candidate: {}, lambda number: None, FreeWorkers())
    searcher.suggest("told")
    full = OSError("database or disk is full")
    monkeypatch.setattr(study, "complete", Mock(side_effect=full))
    searcher.on_trial_complete("told", {"tokens": 64, "val_loss": 3.0, FINAL: True})
    assert searcher.problem is full
    with pytest.raises(OSError, match="disk is full"):
        searcher.suggest("next")


def test_the_best_stock_candidate_of_a_rung_always_goes_on() -> None:
    study = make_study(sampler="exhaustive", feasible=CUSTOM_FIRST)
    scheduler = StudyScheduler(study, lambda _: None, Promotion(study, last=64, halving=True))
    went_on = []
    for loss in range(1, len(CUSTOM_FIRST) + 1):  # each worse than all before it
        candidate = study.ask()
        assert candidate is not None
        result = {"tokens": 16, "val_loss": float(loss)}
        if scheduler.on_trial_result(None, FakeTrial(candidate.number), result) == "CONTINUE":
            went_on.append(candidate.architecture)
    assert went_on == [CUSTOM_FIRST[0], next(one for one in CUSTOM_FIRST if SHAPE.is_stock(one))]


@pytest.mark.parametrize("sampler", INNER)
def test_several_budgets_take_turns_until_one_has_no_more(sampler: str) -> None:
    budgets = parse_budgets("70%,60%", SHAPE.parameters(SHAPE.full), SPACE.counts, 0.05)
    large, small = (list(SPACE.feasible(budget)) for budget in budgets)
    feasible = (*large[:10], *small[:4])
    study = SearchStudy(
        "sqlite:///:memory:", "s", SPACE, feasible, sampler=sampler, seed=0, identity={}, budgets=budgets
    )
    study.sampler.screened = {one.key: loss_of(one) for one in feasible}
    study.queue([("idea", large[1])])
    keys = advance(study, len(feasible))
    own = [key in {one.key for one in large} for key in keys]
    assert own == [True, False] * 4 + [True] * 6
    assert sorted(keys) == sorted(one.key for one in feasible)


def test_a_budget_is_no_rival_of_another() -> None:
    budgets = parse_budgets("70%,60%", SHAPE.parameters(SHAPE.full), SPACE.counts, 0.05)
    custom = [[one for one in SPACE.feasible(budget) if not SHAPE.is_stock(one)] for budget in budgets]
    feasible = (*custom[0][:3], *custom[1][:3])
    study = SearchStudy(
        "sqlite:///:memory:", "s", SPACE, feasible, sampler="exhaustive", seed=0, identity={}, budgets=budgets
    )
    scheduler = StudyScheduler(study, lambda _: None, Promotion(study, last=64, halving=True))
    went_on = []
    for loss in (1.0, 2.0, 1.1, 2.1, 1.2, 2.2):  # large, small, large, ...: each the worst of its own
        candidate = study.ask()
        assert candidate is not None
        decision = scheduler.on_trial_result(None, FakeTrial(candidate.number), {"tokens": 16, "val_loss": loss})
        went_on.append(decision == "CONTINUE")
        assert study.rank_at(16, candidate.number).seen == len(went_on[math.floor(loss) - 1 :: 2])
    assert went_on == [True, True, False, False, False, False]


@pytest.mark.parametrize("fewest", [1, 3])
def test_of_candidates_that_come_best_first_as_many_go_on_as_are_wanted(fewest: int) -> None:
    study = make_study(sampler="exhaustive", feasible=CUSTOM_FIRST[:5])
    scheduler = StudyScheduler(study, lambda _: None, Promotion(study, last=64, halving=True, fewest=fewest))
    kept = []
    for loss in range(1, 6):
        candidate = study.ask()
        assert candidate is not None
        result = {"tokens": 16, "val_loss": float(loss)}
        kept.append(scheduler.on_trial_result(None, FakeTrial(candidate.number), result) == "CONTINUE")
    assert kept == [True, fewest == 3, fewest == 3, True, False]  # the fourth is the best stock one


def test_without_halving_every_trial_goes_its_whole_way() -> None:
    study = make_study()
    scheduler = StudyScheduler(study, lambda _: None, Promotion(study, last=64, halving=False))
    for loss in (1.0, 5.0, 9.0):
        candidate = study.ask()
        assert candidate is not None
        result = {"tokens": 16, "val_loss": loss}
        assert scheduler.on_trial_result(None, FakeTrial(candidate.number), result) == "CONTINUE"


def test_rungs_are_whole_steps_and_end_at_the_tokens() -> None:
    assert rungs(65_536, 1_024) == (16_384, 32_768, 65_536)
    assert rungs(1_000, 1_024) == (1_024,)
    for tokens in range(1_024, 20_000, 777):
        steps = rungs(tokens, 1_024)
        assert steps[-1] <= tokens < steps[-1] + 1_024
        assert all(rung % 1_024 == 0 for rung in steps)


def test_halving_keeps_the_better_half() -> None:
    assert [promotes(better, 10) for better in range(10)] == [True] * 5 + [False] * 5
    assert [promotes(better, 10, 7) for better in range(10)] == [True] * 7 + [False] * 3
    assert [promotes(better, 10, 2) for better in range(10)] == [True] * 5 + [False] * 5
    assert promotes(0, 1)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_a_trial(loss: float) -> None:
    study = make_study()
    candidate = study.ask()
    assert candidate is not None
    study.report(candidate.number, 16, loss)
    assert not Promotion(study, last=64, halving=False).goes_on(candidate.number, 16, loss)
