"""A screening is what a trial reads before its first step, on less text."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.losses.window_losses import window_losses
from trials.preparation import shared
from trials.prune.prune import prune
from trials.recipe import Recipe
from trials.screen import screen
from trials.text.corpus import windows
from trials.trial import TrialSpec, run_trial

CUSTOM = Architecture(2, 40, (4, 2), (10, 96))
SENTENCE = "the teacher is pruned to a smaller architecture and distilled for a short while until a layer matters"


@pytest.fixture
def spec(tiny_teacher_folder: Path, tmp_path: Path) -> TrialSpec:
    source, texts = random.Random(0), []
    for name in ("text", "more"):
        paragraphs = (" ".join(source.choices(SENTENCE.split(), k=60)) for _ in range(60))
        texts.append(tmp_path / f"{name}.txt")
        texts[-1].write_text("\n\n".join(paragraphs))
    validation = (("more", str(texts[1])),)
    recipe = Recipe(str(tiny_teacher_folder), str(texts[0]), 64, (64,), 128, 16, 64, 3e-3, 8, 0, validation)
    return TrialSpec(recipe, CUSTOM, str(tmp_path / "trial"), str(tmp_path / "cache"))


def test_on_all_text_it_is_the_first_reading_of_the_trial_and_leaves_no_trace(spec: TrialSpec) -> None:
    loss = screen(spec, 10**6, 10**6)
    assert not Path(spec.directory).exists()
    assert loss == pytest.approx(run_trial(spec, lambda *_: None).zero_shot_loss)


def test_only_the_text_that_is_granted_is_read(spec: TrialSpec) -> None:
    common = shared(spec.recipe, spec.cache, "cpu")
    student = prune(common.teacher.model, common.scores, CUSTOM, common.streams.first(3))
    texts = [windows(text, 16)[:2] for text in common.corpus.texts.values()]
    expected = np.mean([window_losses(student, common.targets.family, text).mean() for text in texts])
    assert len(texts) == 2
    assert screen(spec, 3 * 16 + 5, 2 * 16) == pytest.approx(expected)
    assert screen(spec, 4 * 16, 2 * 16) != pytest.approx(expected, abs=1e-6)
    assert screen(spec, 3 * 16, 3 * 16) != pytest.approx(expected, abs=1e-6)


def test_an_architecture_beyond_the_teacher_is_refused(spec: TrialSpec) -> None:
    with pytest.raises(InputError):
        screen(replace(spec, architecture=Architecture.uniform(99, 32, 2, 64)))
