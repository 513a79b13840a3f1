"""Who goes on after the trials, and that nobody does twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tracking_reference import record

from nas.choosing.finalists import finalists
from nas.choosing.selection import FINALIST, STOCK, competes
from nas.planning.errors import Failure
from nas.planning.machine import Machine, Node, Resources
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from nas.planning.specs import final_spec, final_windows
from nas.running.task_lists import FinalUpdate
from nas.running.workers import Workers
from nas.stages import finish
from nas.stages.finish import recalled, train_finals, updated
from nas.stages.try_candidates import Tried
from nas.study.records import FinalRecord, TrialRecord
from nas.study.study import SearchStudy
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.distill.checkpoint import Rung
from trials.distill.results import write_result
from trials.final import FinalResult, FinalSpec

OnResult = Callable[[str, FinalUpdate], None]
NOBODY = Workers(Resources(1, 1, 0))


class Runner:
    """Takes the place of Ray: every final ends at once, with the loss that `losses` gives, or fails."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.outcome: dict[str, Failure | BaseException] = {}

    def __call__(self, specs: Mapping[str, FinalSpec], workers: Workers, on_result: OnResult) -> None:
        for name, spec in specs.items():
            self.ran.append(name)
            on_result(name, None)
            on_result(name, Rung(spec.trial.recipe.tokens, {"val_loss": 3.0}))
            on_result(name, Rung(spec.trial.recipe.tokens + spec.tokens, {"val_loss": 2.5}))
            one = self.outcome.get(name)
            if isinstance(one, BaseException):
                raise one
            on_result(name, one or result(spec))


def result(spec: FinalSpec) -> FinalResult:
    loss, tokens = 2.0 + spec.trial.architecture.hidden / 100, spec.trial.recipe.tokens + spec.tokens
    curve = ((0, 9.0), (spec.trial.recipe.tokens, 3.0), (tokens, loss))
    windows = {"text": (loss - 1, loss + 1)}
    made = FinalResult(spec.trial.architecture, 3.0, loss, 0.5, tokens, 1.0, 1, curve, 0, windows, {"a": 1.0, "b": 2.0})
    Path(spec.directory).mkdir(parents=True, exist_ok=True)
    write_result(Path(spec.directory), "identity", (), made.to_dict())
    return made


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner()
    monkeypatch.setattr(finish, "run_finals", runner)
    return runner


@pytest.fixture
def plan(tiny_teacher_folder: Path, tmp_path: Path) -> Plan:
    return make(tiny_teacher_folder, tmp_path)


def make(teacher: Path, output: Path, **changes: Any) -> Plan:
    flags = {"model": teacher, "output": output, "corpus": "stdlib", "budget": "60%", "tolerance": "0.2", **changes}
    settings = load_settings({name: str(value) for name, value in flags.items()}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(2, 0.0, 2**34),)))


@pytest.fixture
def study(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> SearchStudy:
    plan.output.mkdir(exist_ok=True)
    target = plan.target
    return SearchStudy(plan.storage, "s", target.space, target.feasible, sampler="tpe", seed=0, identity={})


def trials(plan: Plan, count: int = 6) -> list[TrialRecord]:
    """COMPLETE trials of shapes of the band that are neither stock nor a baseline, best first; the last is stock."""
    shape = plan.target.shape
    free = [one for one in plan.target.feasible if one not in plan.baselines.values()]
    custom = [one for one in free if not shape.is_stock(one)][: count - 1]
    stock = next(one for one in free if shape.is_stock(one))
    return [_trial(number, one, shape.is_stock(one)) for number, one in enumerate([*custom, stock])]


def _trial(number: int, architecture: Architecture, stock: bool) -> TrialRecord:
    curve = ((0, 9.0), (1024, 3.0 + number))
    return record(number, architecture=architecture, stock=stock, curve=curve, val_loss=3.0 + number)


def open_stage(plan: Plan, study: SearchStudy, records: list[TrialRecord]) -> list[FinalRecord]:
    """The finals of ``plan``, as the study remembers them."""
    return [recalled(plan, study, one) for one in finalists(plan, records)]


def roles(stage: list[FinalRecord]) -> dict[Architecture, tuple[str, ...]]:
    return {one.architecture: one.roles for one in stage}


def test_the_best_go_on_and_the_best_stock_one_and_the_baselines(plan: Plan) -> None:
    records = trials(plan)
    found = roles(finalists(plan, [*records, record(9, "PRUNED"), record(10, "FAIL")]))
    assert [one for one, names in found.items() if FINALIST in names] == [one.architecture for one in records[:3]]
    assert [one for one, names in found.items() if STOCK in names] == [records[-1].architecture]
    named = {name: one for one, names in found.items() for name in names if name not in (FINALIST, STOCK)}
    assert named == plan.baselines
    assert len(found) == 3 + 1 + len(set(plan.baselines.values()))


def test_an_architecture_with_two_roles_goes_on_once(plan: Plan) -> None:
    records = trials(plan)
    name, baseline = next(iter(plan.baselines.items()))
    records[0] = replace(records[0], architecture=baseline)
    records[1] = replace(records[1], architecture=records[-1].architecture, stock=True)
    found = roles(finalists(plan, records[:-1]))
    assert found[baseline][:2] == (FINALIST, name)
    assert found[records[1].architecture] == (FINALIST,)  # it is the best stock one, too: it goes on anyway


def test_baselines_compete_with_nobody(plan: Plan) -> None:
    stage = finalists(plan, trials(plan))
    assert [competes(one) for one in stage] == [bool({FINALIST, STOCK} & set(one.roles)) for one in stage]
    assert not competes(stage[-1])


def test_the_tokens_are_the_trials_and_as_many_again(plan: Plan) -> None:
    for one in finalists(plan, trials(plan)):
        assert one.tokens == plan.recipe.tokens + plan.final_tokens
        spec = final_spec(plan, one)
        assert (spec.tokens, spec.trial.architecture) == (plan.final_tokens, one.architecture)
        assert Path(spec.directory).parent == plan.folder / "finals"


def test_without_baselines_and_with_fewer_finalists(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    plan = make(tiny_teacher_folder, tmp_path, finalists=1, baselines="false")
    records = trials(plan)
    assert list(roles(finalists(plan, records))) == [records[0].architecture, records[-1].architecture]
    assert len(finalists(plan, records[:1])) == 1


def test_a_second_run_trains_nothing_and_finds_the_same(plan: Plan, study: SearchStudy, runner: Runner) -> None:
    records, told = trials(plan), list[str]()
    stage = open_stage(plan, study, records)
    assert {one.state for one in stage} == {"WAITING"}
    first = train_finals(plan, study, stage, NOBODY, lambda _, one: told.append(one.state))
    assert len(runner.ran) == len(stage) == len({*runner.ran})
    assert {one.state for one in first} == {"COMPLETE"}
    assert told.count("COMPLETE") == len(stage)
    again = open_stage(plan, study, records)
    assert again == first
    assert train_finals(plan, study, again, NOBODY, lambda *_: pytest.fail("something changed")) == first
    assert len(runner.ran) == len(stage)
    for one in again:
        (losses,) = (final_windows(plan, one) or {}).values()
        assert losses.mean() == one.val_loss
        assert (one.metrics["val_loss/a"], one.metrics["trial_loss"]) == (1.0, 3.0)
        assert FinalRecord.from_dict(one.to_dict()) == one


def test_a_run_that_was_cut_off_goes_on_with_what_is_left(plan: Plan, study: SearchStudy, runner: Runner) -> None:
    stage = open_stage(plan, study, trials(plan))
    third = sorted(stage, key=lambda one: len(one.curve))[2].name
    runner.outcome[third] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        train_finals(plan, study, stage, NOBODY, lambda *_: None)
    before, cut = runner.ran[:2], runner.ran[2]
    runner.outcome.clear()
    runner.ran.clear()
    opened = {one.name: one for one in open_stage(plan, study, trials(plan))}
    assert {name for name, one in opened.items() if one.state == "COMPLETE"} == set(before)
    assert opened[cut].state == "WAITING"
    assert opened[cut].started is not None  # for its run in MLflow: one beginning, however often it goes on
    train_finals(plan, study, list(opened.values()), NOBODY, lambda *_: None)
    assert sorted(runner.ran) == sorted({one.name for one in stage} - set(before))


def test_what_a_retry_cannot_mend_is_not_tried_again_and_what_it_may_is(
    plan: Plan, study: SearchStudy, runner: Runner
) -> None:
    stage = open_stage(plan, study, trials(plan))
    lasting, passing = stage[0].name, stage[1].name
    runner.outcome = {lasting: Failure("NonFiniteLoss: nan", False), passing: Failure("OSError: disk full", True)}
    done = {one.name: one for one in train_finals(plan, study, stage, NOBODY, lambda *_: None)}
    assert (done[lasting].state, done[passing].state) == ("FAIL", "FAIL")
    assert done[passing].reason == "OSError: disk full"
    runner.outcome.clear()
    runner.ran.clear()
    again = train_finals(plan, study, open_stage(plan, study, trials(plan)), NOBODY, lambda *_: None)
    assert runner.ran == [passing]
    assert {one.name: one.state for one in again}[lasting] == "FAIL"


def test_a_final_whose_files_are_gone_is_made_again(plan: Plan, study: SearchStudy, runner: Runner) -> None:
    first = train_finals(plan, study, open_stage(plan, study, trials(plan)), NOBODY, lambda *_: None)
    (plan.folder / "finals" / first[0].name / "result.json").unlink()
    runner.ran.clear()
    train_finals(plan, study, open_stage(plan, study, trials(plan)), NOBODY, lambda *_: None)
    assert runner.ran == [first[0].name]


def test_more_finalists_and_more_tokens_are_added_to_what_is_there(
    plan: Plan, study: SearchStudy, runner: Runner, tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    train_finals(plan, study, open_stage(plan, study, trials(plan)), NOBODY, lambda *_: None)
    runner.ran.clear()
    more = make(tiny_teacher_folder, tmp_path, finalists=4)
    train_finals(more, study, open_stage(more, study, trials(more)), NOBODY, lambda *_: None)
    assert len(runner.ran) == 1
    longer = make(tiny_teacher_folder, tmp_path, final_tokens=plan.final_tokens // 2)
    train_finals(longer, study, open_stage(longer, study, trials(longer)), NOBODY, lambda *_: None)
    assert len(runner.ran) == 1 + len(finalists(longer, trials(longer)))
    assert all(one.state == "COMPLETE" for one in open_stage(plan, study, trials(plan)))


def test_a_rung_of_the_trial_changes_nothing(plan: Plan) -> None:
    one = finalists(plan, trials(plan))[0]
    last = one.curve[-1][0]
    assert updated(one, Rung(last, {"val_loss": 1.0})) == one
    assert updated(one, Rung(last + 64, {"val_loss": 1.0})).curve == (*one.curve, (last + 64, 1.0))


def test_the_study_keeps_trials_and_finals_apart(plan: Plan, study: SearchStudy, runner: Runner) -> None:
    before = study.records()
    train_finals(plan, study, open_stage(plan, study, trials(plan)), NOBODY, lambda *_: None)
    assert study.records() == before == []
    candidate = study.ask()
    assert candidate is not None
    study.report(candidate.number, plan.recipe.tokens, 1.0)
    assert study.rank_at(plan.recipe.tokens, candidate.number).seen == 1


def test_a_search_does_not_conclude_without_finals_that_failed_by_their_surroundings(
    plan: Plan, study: SearchStudy, runner: Runner
) -> None:
    tried = Tried(0.0, plan, study, None, first=(), losses={}, records=tuple(trials(plan)))  # type: ignore[arg-type]
    stage = open_stage(plan, study, trials(plan))
    runner.outcome = {stage[0].name: Failure("OSError: full", True), stage[1].name: Failure("nan", False)}
    with pytest.raises(InputError, match=rf"1 of {len(stage)} finals failed by their .* 4 times: OSError: full; mend"):
        finish.finish(tried, NOBODY, lambda _: None)
    runner.outcome.clear()
    finals = finish.finish(tried, NOBODY, lambda _: None).finals
    assert [one.state for one in finals] == ["COMPLETE", "FAIL", *["COMPLETE"] * (len(stage) - 2)]
