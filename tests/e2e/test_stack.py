"""The processes of the stack: they train, measure, and are not started again for what is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_gpt2
from small_search import write_text

from trials import stack
from trials.evaluate.stages import Stages
from trials.families.shapes import shape_of
from trials.recipe import Recipe
from trials.stack import StageSpec, run_stage
from trials.trial import TrialSpec


def test_both_processes_and_the_second_call_that_needs_none(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(str(tiny_teacher_folder), str(write_text(tmp_path)), 512, (512,), 256, 32, 64, 1e-3, 8, 0)
    teacher = shape_of(make_gpt2().config).full
    spec = StageSpec(TrialSpec(recipe, teacher, str(tmp_path / "row"), str(tmp_path / "cache")), Stages(flash=True))
    costs = run_stage(spec)
    assert (costs.stages, costs.architecture, costs.training.steps) == (spec.stages, teacher.key, 7)
    monkeypatch.setattr(stack, "_in_process", lambda step, folder: pytest.fail(f"{step} ran again"))
    assert run_stage(spec) == costs
    with pytest.raises(pytest.fail.Exception, match="train ran again"):
        run_stage(replace(spec, stages=Stages()))
