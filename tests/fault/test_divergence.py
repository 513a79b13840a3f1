"""A trial whose loss is NaN or diverges fails with a reason; others are as they would be. If all fail so, it stops."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import Driver
from optuna.trial import TrialState
from ray import cloudpickle
from small_search import arguments, trials_in, write_text

from nas.cluster.session import ray_session
from nas.planning.errors import ALIKE
from nas.planning.plan import make_plan, resolve_target
from nas.planning.settings import parse_arguments
from nas.planning.specs import trial_spec
from nas.running.tasks import trial_task
from nas.running.tune_run import run_trials
from nas.running.workers import open_workers
from nas.stages.prepare import open_study, prepare_teacher
from trials.teacher.targets import Targets
from trials.trial import TrialSpec, run_trial

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

pytestmark = pytest.mark.fault_slow

TOO_FAST = 0.9  # a learning rate with which no network learns


def spoiled(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The real trial. The second one that begins has a loss of NaN after some steps, the third diverges."""
    begun = Path(spec["cache"]).parent / "begun"
    with begun.open("a") as file:
        file.write("x")
    number = len(begun.read_text())
    if number == 3:
        spec = {**spec, "recipe": {**spec["recipe"], "learning_rate": TOO_FAST}}
    with pytest.MonkeyPatch.context() as patch:
        if number == 2:
            patch.setattr(Targets, "divergence", nan_at_the_fifth(Targets.divergence))
        yield from trial_task(spec)


def nan_at_the_fifth(divergence: Any) -> Any:
    calls = iter(range(4))
    return lambda *given: divergence(*given) * (1.0 if next(calls, None) is not None else math.nan)


def test_a_trial_that_is_not_finite_or_diverges_fails_and_the_others_are_as_they_would_be(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a process keeps to one mode, and other files need this one
    changes = {"trials": 4, "scheduler": "none", "workers": 1, "sampler": "random"}
    flags = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path / "out", "spoiled", **changes)
    settings, _, _ = parse_arguments(flags)
    with ray_session(settings) as machine:
        plan = make_plan(settings, resolve_target(settings), machine)
        plan.folder.mkdir(parents=True)
        with open_workers(plan.resources, str(plan.output), machine) as workers:
            study = open_study(plan, prepare_teacher(plan, workers, lambda _: None).preparation)
            run_trials(plan, study, workers, lambda number: None, spoiled)
    first, nan, diverged, last = study.records()
    assert (nan.state, diverged.state) == ("FAIL", "FAIL")
    assert str(nan.reason).startswith("NonFiniteLoss: step 5: training KL nan")
    assert str(diverged.reason).startswith("Diverged: step ")
    for record in (first, last):
        spec = trial_spec(plan, record.architecture)
        alone = TrialSpec(spec.recipe, spec.architecture, str(tmp_path / record.architecture.key), spec.cache)
        assert record.state == "COMPLETE"
        assert record.curve == run_trial(alone, lambda tokens, metrics: None).curve


def test_a_search_in_which_all_trials_diverge_stops_after_three_with_exit_code_3(
    tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    changes = {"trials": 6, "workers": 1, "learning_rate": TOO_FAST}
    flags = arguments(tiny_teacher_folder, write_text(tmp_path), tmp_path, "doomed", **changes)
    driver = Driver(["python", "-m", "nas.search", *flags], tmp_path)
    code = driver.finish()
    text = "".join(driver.lines)
    assert code == 3, text
    last = text.splitlines()[-1]
    assert last.startswith(f"error: {ALIKE} trials failed for the same reason, and none succeeded: Diverged: step ")
    assert "Traceback" not in text
    trials = trials_in(tmp_path, "doomed")
    assert [one.state for one in trials] == [TrialState.FAIL] * ALIKE
    assert all(one.user_attrs["reason"].startswith("Diverged") for one in trials)
