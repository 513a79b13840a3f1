"""Studies without a refit: students are plain slices, and their losses may have been measured together."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces.architecture import Architecture
from search_spaces.compression import Compression, Sparsity
from trials import trial as door
from trials.losses.window_losses import window_losses
from trials.preparation import prepare, shared
from trials.prune.prune import prune
from trials.recipe import Recipe
from trials.screen import screen
from trials.slices import SlicesSpec, measure_slices, slice_losses
from trials.text.corpus import windows
from trials.trial import TrialSpec, load_student, run_trial

SENTENCE = "the teacher is pruned to a smaller architecture and distilled for a short while until a layer matters"
WITHOUT_ONE = replace(Architecture.uniform(2, 48, 4, 96), kept_layers=(0, 2))
NARROW = Architecture.uniform(2, 36, 3, 64)


@pytest.fixture(scope="module")
def recipe(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    chance, files = random.Random(0), []
    for name in ("text", "more"):
        paragraphs = (" ".join(chance.choices(SENTENCE.split(), k=60)) for _ in range(120))
        files.append(tmp_path_factory.mktemp("corpus") / f"{name}.txt")
        files[-1].write_text("\n\n".join(paragraphs))
    more = (("more", str(files[1])),)
    return Recipe(str(tiny_teacher_folder), str(files[0]), 0, (), 128, 16, 64, 3e-3, 8, 0, more, refit=False)


@pytest.fixture
def spec(recipe: Recipe, tmp_path: Path) -> TrialSpec:
    return TrialSpec(recipe, WITHOUT_ONE, str(tmp_path / "trial"), str(tmp_path / "cache"))


@pytest.mark.parametrize("architecture", [WITHOUT_ONE, NARROW])
def test_without_a_refit_the_student_is_a_plain_slice(spec: TrialSpec, architecture: Architecture) -> None:
    spec = replace(spec, architecture=architecture)
    prepare(spec.recipe, spec.cache, "cpu")
    result = run_trial(spec, lambda *_: None)
    common = shared(spec.recipe, spec.cache, "cpu")
    plain = prune(common.teacher.model, common.scores, architecture)
    weights = load_student(spec).state_dict()
    assert all(torch.equal(weights[name], one) for name, one in plain.state_dict().items())
    texts = [windows(text, 16) for text in common.corpus.texts.values()]
    losses = [window_losses(plain, common.targets.family, text).mean() for text in texts]
    assert result.val_loss == pytest.approx(np.mean(losses))
    assert screen(spec, 10**6, 10**6) == pytest.approx(result.val_loss)
    assert not (Path(spec.cache) / "streams").exists()


def test_a_refit_is_another_study(recipe: Recipe) -> None:
    refitted = replace(recipe, refit=True)
    assert "refit" not in refitted.to_dict()
    assert recipe.to_dict() == {**refitted.to_dict(), "refit": False}
    assert [Recipe.from_dict(one.to_dict()) for one in (recipe, refitted)] == [recipe, refitted]


def test_a_trial_reads_what_was_measured_together(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run_trial(spec, lambda *_: None)
    subsets = tuple(one for depth in (1, 2, 3) for one in combinations(range(3), depth))
    given = SlicesSpec(spec.recipe, spec.cache, "cpu", subsets)
    assert measure_slices(given) == 7
    assert measure_slices(given) == 0
    common = shared(spec.recipe, spec.cache, "cpu")
    known = slice_losses(common, spec.recipe, WITHOUT_ONE)
    assert known is not None
    assert list(known) == list(common.corpus.texts)
    assert np.mean([one.mean() for one in known.values()]) == pytest.approx(alone.val_loss, abs=1e-6)

    def fail(*_: object) -> None:
        raise AssertionError("the trial measured again")

    monkeypatch.setattr("trials.distill.distill.window_losses", fail)
    again = run_trial(replace(spec, directory=f"{spec.directory}-again"), lambda *_: None)
    assert again.val_loss == pytest.approx(alone.val_loss, abs=1e-6)
    assert again.losses == pytest.approx(alone.losses)


def test_only_slices_of_whole_layers_are_read(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_slices(SlicesSpec(spec.recipe, spec.cache, "cpu", ((0, 2), (0, 1))))
    common = shared(spec.recipe, spec.cache, "cpu")
    assert slice_losses(common, spec.recipe, WITHOUT_ONE)
    sparse = replace(WITHOUT_ONE, compression=Compression(sparsity=Sparsity(0.5)))
    others = [NARROW, WITHOUT_ONE.timed, common.teacher.shape.full, sparse]
    others += [replace(WITHOUT_ONE, kept_layers=(1, 2)), replace(WITHOUT_ONE, mlp=(96, 95))]
    assert not [one for one in others if slice_losses(common, spec.recipe, one)]
    assert slice_losses(common, replace(spec.recipe, refit=True), WITHOUT_ONE) is None
    assert slice_losses(common, replace(spec.recipe, tokens=64, rungs=(64,)), WITHOUT_ONE) is None
    assert door.slice_losses is slice_losses
