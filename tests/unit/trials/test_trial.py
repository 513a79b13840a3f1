"""A whole trial on a tiny teacher, and repeated calls of it."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.compression import Compression, Sparsity
from search_spaces.errors import InputError
from trials import trial as door
from trials.distill.distill import NonFiniteLoss
from trials.losses.window_losses import validation_loss
from trials.preparation import Preparation, prepare, shared
from trials.prune.prune import prune
from trials.recipe import Recipe
from trials.text.corpus import windows
from trials.trial import TrialResult, TrialSpec, load_student, run_trial

CUSTOM = Architecture(2, 40, (4, 2), (10, 96))
STOCK = Architecture.uniform(2, 36, 3, 64)
Reading = tuple[int, dict[str, float]]


@pytest.fixture(scope="module")
def recipe(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    words, source = TEXT.split(), random.Random(0)
    paragraphs = (" ".join(source.choices(words, k=60)) for _ in range(300))
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n\n".join(paragraphs))
    return Recipe(str(tiny_teacher_folder), str(file), 320, (128, 320), 256, 16, 64, 3e-3, 8, 0)


TEXT = "the teacher is pruned to a smaller architecture and distilled for a short while until a layer matters"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def spec(recipe: Recipe, cache: str, tmp_path: Path) -> TrialSpec:
    return TrialSpec(recipe, CUSTOM, str(tmp_path / "trial"), cache)


def run(spec: TrialSpec) -> tuple[TrialResult, list[Reading]]:
    readings: list[Reading] = []
    return run_trial(spec, lambda tokens, metrics: readings.append((tokens, metrics))), readings


@pytest.mark.parametrize("architecture", [CUSTOM, STOCK])
def test_result_is_of_the_student_that_is_left(spec: TrialSpec, architecture: Architecture) -> None:
    spec = replace(spec, architecture=architecture)
    result, readings = run(spec)
    student, common = load_student(spec), shared(spec.recipe, spec.cache, "cpu")
    text, family = windows(common.corpus.validation, 16), common.targets.family
    assert validation_loss(student, family, text) == result.val_loss
    assert sum(weight.numel() for weight in student.parameters()) == result.parameters
    unchanged = prune(common.teacher.model, common.scores, architecture, common.streams)
    assert validation_loss(unchanged, family, text) == result.zero_shot_loss
    assert (result.architecture, result.stock) == (architecture, architecture is STOCK)
    assert result.curve == tuple((tokens, metrics["val_loss"]) for tokens, metrics in readings)
    assert [tokens for tokens, _ in readings] == [0, 128, 320]
    assert (result.val_loss, result.kl) == (readings[-1][1]["val_loss"], readings[-1][1]["kl"])
    assert (result.tokens, result.resumed_from) == (320, 0)
    assert result.tokens_per_second == pytest.approx(320 / result.seconds)
    assert result.peak_memory_bytes > 10 * 2**20
    assert Path(result.weights).is_relative_to(spec.directory)
    assert TrialResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert sorted(path.name for path in Path(spec.directory).iterdir()) == ["result.json", "student"]


def test_without_distillation_a_student_trains_on_the_text_alone(spec: TrialSpec, tmp_path: Path) -> None:
    sparse, text = (replace(STOCK, compression=Compression(Sparsity(0.5, distilled=one))) for one in (True, False))
    taught, found = run(replace(spec, architecture=sparse))[0], run(replace(spec, architecture=text))[0]
    on_text = replace(spec, recipe=replace(spec.recipe, text_share=1.0), directory=str(tmp_path / "other"))
    wanted = run(replace(on_text, architecture=sparse))[0]
    assert found.curve == wanted.curve != taught.curve


def test_without_training_the_student_is_as_it_was_cut(spec: TrialSpec, tmp_path: Path) -> None:
    spec = replace(spec, recipe=replace(spec.recipe, tokens=0, rungs=()), cache=str(tmp_path / "empty"))
    result, readings = run(spec)
    common = shared(spec.recipe, spec.cache, "cpu")
    unchanged = prune(common.teacher.model, common.scores, CUSTOM, common.streams).state_dict()
    torch.testing.assert_close(load_student(spec).state_dict(), unchanged, rtol=0, atol=0)
    assert result.curve == ((0, result.val_loss),) == tuple((tokens, one["val_loss"]) for tokens, one in readings)
    assert (result.tokens, result.tokens_per_second, result.kl) == (0, 0, None)
    assert result.zero_shot_loss == result.val_loss
    assert not (tmp_path / "empty" / "targets").exists(), "nobody trains on them"
    assert run(spec) == (result, readings)


def test_finished_trial_is_not_run_again(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    result, readings = run(spec)
    monkeypatch.setattr(door, "distill", lambda *_: pytest.fail("trained again"))
    assert run(spec) == (replace(result, resumed_from=320), readings)
    moved = Path(spec.directory).rename(Path(spec.directory).with_name("moved"))
    assert run(replace(spec, directory=str(moved)))[0].weights == str(moved / "student")


@pytest.mark.parametrize("harm", ["weights", "result", "foreign JSON"])
def test_damaged_result_is_made_again(spec: TrialSpec, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = run(spec)
    student, result = Path(spec.directory) / "student" / "model.safetensors", Path(spec.directory) / "result.json"
    {
        "weights": lambda: os.truncate(student, 100),
        "result": lambda: os.truncate(result, 30),
        "foreign JSON": lambda: result.write_text("[1]"),
    }[harm]()
    with caplog.at_level(logging.WARNING):
        again, readings = run(spec)
    assert "the trial runs again" in caplog.text
    assert (again.val_loss, again.curve, again.resumed_from) == (first.val_loss, first.curve, 0)
    assert len(readings) == 3
    load_student(spec)


@pytest.mark.parametrize("change", [{"seed": 1}, {"rungs": (192, 320)}])
def test_result_of_another_recipe_is_not_taken(spec: TrialSpec, change: dict[str, object]) -> None:
    first, _ = run(spec)
    other = replace(spec, recipe=replace(spec.recipe, **change))
    again, _ = run(other)
    assert again.resumed_from == 0
    assert (again.val_loss, again.curve) != (first.val_loss, first.curve)


class Killed(BaseException):
    """The worker dies without cleaning up."""


def test_killed_trial_goes_on(spec: TrialSpec, tmp_path: Path) -> None:
    def report(tokens: int, _: dict[str, float]) -> None:
        if tokens == 128:
            raise Killed

    with pytest.raises(Killed):
        run_trial(spec, report)
    assert not (Path(spec.directory) / "result.json").exists()
    with pytest.raises(FileNotFoundError, match="run the trial again"):
        load_student(spec)
    result, readings = run(spec)
    whole, _ = run(replace(spec, directory=str(tmp_path / "whole")))
    assert result.resumed_from == 128
    assert [tokens for tokens, _ in readings] == [0, 128, 320]
    assert (result.val_loss, result.curve, result.kl) == (whole.val_loss, whole.curve, whole.kl)
    one, other = (load_file(Path(weights) / "model.safetensors") for weights in (result.weights, whole.weights))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_trial_leaves_the_teacher_as_it_was(spec: TrialSpec) -> None:
    model = shared(spec.recipe, spec.cache, "cpu").teacher.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    run(spec)
    assert shared(spec.recipe, spec.cache, "cpu").teacher.model is model
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_student_is_freed(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is freed at once and not by a later garbage collection, because the next trial needs the memory."""
    students: list[weakref.ref[object]] = []

    def watched(*arguments: Any) -> Any:
        student = prune(*arguments)
        students.append(weakref.ref(student))
        return student

    monkeypatch.setattr(door, "prune", watched)
    gc.disable()
    try:
        run(spec)
        assert [student() for student in students] == [None]
    finally:
        gc.enable()


def test_diverging_trial_fails(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trials.distill.distill.learning_rate", lambda *_: float("inf"))
    with pytest.raises(NonFiniteLoss, match="step 2"):
        run(spec)
    assert not (Path(spec.directory) / "result.json").exists()


def test_architecture_beyond_the_teacher(spec: TrialSpec) -> None:
    with pytest.raises(InputError, match="depth 4 exceeds"):
        run(replace(spec, architecture=Architecture.uniform(4, 36, 3, 64)))


def test_spec_and_recipe_survive_json(spec: TrialSpec) -> None:
    assert TrialSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_preparation(recipe: Recipe, tmp_path: Path) -> None:
    cache = str(tmp_path)
    first = prepare(recipe, cache, "cpu")
    common = shared(recipe, cache, "cpu")
    text = windows(common.corpus.validation, 16)
    assert first.teacher_loss == validation_loss(common.teacher.model, common.targets.family, text)
    assert not first.importance_cached
    assert first.corpus_fingerprint == common.corpus.fingerprint
    assert Preparation.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    door_cache = shared.__globals__["_shared"]
    door_cache.cache_clear()
    again = prepare(recipe, cache, "cpu")
    assert again == replace(first, importance_cached=True, seconds=again.seconds)


def test_sequence_longer_than_the_teacher_reads(recipe: Recipe, cache: str) -> None:
    with pytest.raises(InputError, match="the teacher reads at most 64"):
        prepare(replace(recipe, sequence_length=128, batch_tokens=128, rungs=(320,)), cache, "cpu")


def test_corpus_shorter_than_a_window(recipe: Recipe, cache: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one\n\n" * 3)
    with pytest.raises(InputError, match=r"corpus .*short\.txt"):
        prepare(replace(recipe, corpus=str(tmp_path / "short.txt")), cache, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_tokens": 65}, "multiple of the sequence length"),
        ({"rungs": (128, 256)}, "the last one must be tokens"),
        ({"rungs": (320, 128, 320)}, "ascend"),
        ({"rungs": (300, 320)}, "at least one step"),
        ({"rungs": ()}, "the last one must be tokens"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"text_share": 1.5}, "text_share"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"validation_tokens": 0}, "validation_tokens"),
    ],
)
def test_recipe_that_does_not_fit_together(recipe: Recipe, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(recipe, **change)


@settings(max_examples=30, deadline=None)
@given(loss=st.floats(0, 20), tokens=st.integers(0, 10**12))
def test_result_survives_json(loss: float, tokens: int) -> None:
    curve = ((0, loss), (tokens, loss / 3))
    result = TrialResult(CUSTOM, 1, False, loss, loss, loss, tokens, loss, loss, 1, curve, 0, "weights")
    assert TrialResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_the_student_of_a_teacher_whose_layers_differ_is_read_back_as_it_was(
    recipe: Recipe, cache: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    teacher = make_decoder("qwen3", use_sliding_window=True, sliding_window=6, layer_types=kinds)
    for part in (teacher, tiny_tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    architecture = Architecture.uniform(2, 40, 4, 64, 2)
    spec = TrialSpec(replace(recipe, model=str(tmp_path / "teacher")), architecture, str(tmp_path / "trial"), cache)
    result, _ = run(spec)
    student, common = load_student(spec), shared(spec.recipe, spec.cache, "cpu")
    text = windows(common.corpus.validation, spec.recipe.sequence_length)
    assert validation_loss(student, common.targets.family, text) == pytest.approx(result.val_loss, rel=1e-6)
    assert len(student.config.layer_types) == 2
