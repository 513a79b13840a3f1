"""Readings of the teacher on test text: how much is read, in which number format, and once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TEXT

from trials import evaluate_on_tests as final_readings
from trials.evaluate.evaluation import headline, read
from trials.evaluate_on_tests import ReadingSpec, read_model
from trials.recipe import Recipe
from trials.teacher.source import read_shape
from trials.teacher.teacher import load_tokenizer, load_weights
from trials.text.evaluation_text import open_text, parse_tests
from trials.trial import TrialSpec


@pytest.fixture
def spec(tiny_teacher_folder: Path, tmp_path: Path) -> ReadingSpec:
    text = tmp_path / "unseen.txt"
    text.write_text(TEXT * 40)
    recipe = Recipe(str(tiny_teacher_folder), "nowhere", 64, (64,), 64, 16, 64, 1e-3, 8, 0)
    trial = TrialSpec(recipe, read_shape(tiny_teacher_folder).full, str(tmp_path / "trial"), str(tmp_path / "cache"))
    return ReadingSpec(trial, None, parse_tests(f"unseen={text}"), tokens=256)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_model_is_read_in_the_format_that_was_asked_for(
    spec: ReadingSpec, tiny_teacher_folder: Path, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ReadingSpec(spec.trial, spec.weights, spec.tasks, spec.tokens, dtype)
    [found] = read_model(spec)
    assert (found.dtype, found.tokens, found.length) == (dtype or "float32", 4 * 63, 64)
    model = load_weights(tiny_teacher_folder, torch.float32).to(getattr(torch, found.dtype)).eval()
    texts = [open_text(task) for task in spec.tasks]
    [expected] = read(model, headline(texts, load_tokenizer(tiny_teacher_folder), 64, 256))
    assert found.value == expected.value
    monkeypatch.setattr(final_readings, "load_weights", None)  # whoever reads again fails
    assert read_model(spec) == [found]
    other = ReadingSpec(spec.trial, spec.weights, spec.tasks, spec.tokens, "float16")
    with pytest.raises(TypeError):
        read_model(other)
