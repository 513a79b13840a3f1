"""Readings of the teacher on test text: the number of tokens, the number format, and the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TEXT
from downstream_task import written

from search_spaces.architecture import Architecture
from trials import evaluate_on_tests as final_readings
from trials.evaluate.evaluation import headline, read
from trials.evaluate.tasks import HarnessTask, evaluate_tasks, open_tasks
from trials.evaluate_on_tests import EvaluationSpec, evaluate_on_tests
from trials.preparation import shared
from trials.prune.prune import prune
from trials.recipe import Recipe
from trials.teacher.source import read_shape
from trials.teacher.teacher import load_tokenizer, load_weights
from trials.text.evaluation_text import open_text, parse_tests
from trials.trial import TrialSpec


@pytest.fixture
def spec(tiny_teacher_folder: Path, tmp_path: Path) -> EvaluationSpec:
    text = tmp_path / "unseen.txt"
    text.write_text(TEXT * 40)
    recipe = Recipe(str(tiny_teacher_folder), "nowhere", 64, (64,), 64, 16, 64, 1e-3, 8, 0)
    trial = TrialSpec(recipe, read_shape(tiny_teacher_folder).full, str(tmp_path / "trial"), str(tmp_path / "cache"))
    return EvaluationSpec(trial, None, parse_tests(f"unseen={text}"), tokens=256)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_model_is_evaluated_in_the_requested_dtype(
    spec: EvaluationSpec, tiny_teacher_folder: Path, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EvaluationSpec(spec.trial, spec.weights, spec.tasks, spec.tokens, dtype)
    [found] = evaluate_on_tests(spec)
    assert (found.dtype, found.tokens, found.length) == (dtype or "float32", 4 * 63, 64)
    model = load_weights(tiny_teacher_folder, torch.float32).to(getattr(torch, found.dtype)).eval()
    texts = [open_text(task) for task in spec.tasks]
    [expected] = read(model, headline(texts, load_tokenizer(tiny_teacher_folder), 64, 256))
    assert found.value == expected.value
    monkeypatch.setattr(final_readings, "load_weights", None)  # another evaluation would fail
    assert evaluate_on_tests(spec) == [found]
    other = EvaluationSpec(spec.trial, spec.weights, spec.tasks, spec.tokens, "float16")
    with pytest.raises(TypeError):
        evaluate_on_tests(other)


def test_downstream_tasks_come_after_the_texts_and_are_cached_by_their_data(
    spec: EvaluationSpec, tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = HarnessTask("quiz", written(tmp_path))
    spec = replace(spec, tasks=(*spec.tasks, task))
    found = evaluate_on_tests(spec)
    assert [(one.task, one.metric) for one in found][1:] == [("quiz", "acc"), ("quiz", "acc_norm")]
    model, tokenizer = load_weights(tiny_teacher_folder, torch.float32).eval(), load_tokenizer(tiny_teacher_folder)
    assert found[1:] == evaluate_tasks(model, tokenizer, open_tasks((task,)), "float32")
    monkeypatch.setattr(final_readings, "load_weights", None)  # another evaluation would fail
    assert evaluate_on_tests(spec) == found
    open_tasks.cache_clear()
    written(tmp_path, doc_to_text="Q: {{question}}")
    with pytest.raises(TypeError):
        evaluate_on_tests(spec)


def test_a_student_before_retraining_is_the_pruned_and_refitted_one(
    spec: EvaluationSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(" ".join(TEXT.split()[place % 7 :]) for place in range(200)))
    trial = replace(
        spec.trial,
        recipe=replace(spec.trial.recipe, corpus=str(corpus)),
        architecture=Architecture.uniform(2, 40, 3, 60),
    )
    spec = replace(spec, trial=trial, untrained=True)
    [found] = evaluate_on_tests(spec)
    common = shared(trial.recipe, trial.cache, "cpu")
    student = prune(common.teacher.model, common.scores, trial.architecture, common.streams).eval()
    texts = [open_text(task) for task in spec.tasks]
    [expected] = read(student, headline(texts, common.teacher.tokenizer, 64, 256))
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    [other] = evaluate_on_tests(replace(spec, trial=replace(trial, architecture=Architecture.uniform(2, 40, 3, 72))))
    assert other.value != found.value
    monkeypatch.setattr(final_readings, "prune", None)  # another evaluation would fail
    assert evaluate_on_tests(spec) == [found]
