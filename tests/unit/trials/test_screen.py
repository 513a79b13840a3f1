"""A screening gives the loss of a trial before its first step, on less text.

A latency is that of a model with the architecture's shape, and of generated tokens only.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_gpt2
from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials import screen as file
from trials.evaluate.efficiency import Workload, generation_milliseconds
from trials.losses.window_losses import window_losses
from trials.preparation import shared
from trials.prune.prune import prune
from trials.recipe import Recipe
from trials.screen import latency, screen
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


def test_on_all_text_it_is_the_first_loss_of_the_trial_and_nothing_is_written(spec: TrialSpec) -> None:
    loss = screen(spec, 10**6, 10**6)
    assert not Path(spec.directory).exists()
    assert loss == pytest.approx(run_trial(spec, lambda *_: None).zero_shot_loss)


def test_only_the_given_number_of_tokens_is_used(spec: TrialSpec) -> None:
    common = shared(spec.recipe, spec.cache, "cpu")
    student = prune(common.teacher.model, common.scores, CUSTOM, common.streams.first(3))
    texts = [windows(text, 16)[:2] for text in common.corpus.texts.values()]
    expected = np.mean([window_losses(student, common.targets.family, text).mean() for text in texts])
    assert len(texts) == 2
    assert screen(spec, 3 * 16 + 5, 2 * 16) == pytest.approx(expected)
    more = prune(common.teacher.model, common.scores, CUSTOM, common.streams.first(4))
    further = np.mean([window_losses(more, common.targets.family, text).mean() for text in texts])
    assert screen(spec, 4 * 16, 2 * 16) == pytest.approx(further)
    assert further != expected


def test_screening_an_architecture_beyond_the_teacher_is_refused(spec: TrialSpec) -> None:
    with pytest.raises(InputError):
        screen(replace(spec, architecture=Architecture.uniform(99, 32, 2, 64)))


@pytest.fixture(scope="module")
def spec_of(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], TrialSpec]:
    folder = tmp_path_factory.mktemp("latency")
    (folder / "text.txt").write_text(
        "\n\n".join("the teacher is pruned and distilled for a while " * 9 for _ in range(60))
    )
    recipe = Recipe(str(tiny_teacher_folder), str(folder / "text.txt"), 64, (64,), 64, 32, 64, 3e-3, 4, 0)
    return lambda one: TrialSpec(recipe, one, str(folder / "trial"), str(folder / "cache"))


def test_latency_is_that_of_a_model_of_the_shape(
    spec_of: Callable[[Architecture], TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, Workload]] = []

    def record(model: PreTrainedModel, workload: Workload) -> float:
        timed.append((sum(one.numel() for one in model.parameters()), workload))
        return 7.0

    monkeypatch.setattr(file, "generation_milliseconds", record)
    one = spec_of(CUSTOM)
    assert latency(one) == 7.0
    shape = shared(one.recipe, one.cache, one.device).teacher.shape
    assert timed == [(shape.parameters(CUSTOM), Workload.within(32, batch=1))]
    assert not Path(one.directory).exists()


def test_latency_of_a_custom_shape_is_the_time_of_a_token(
    spec_of: Callable[[Architecture], TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves a millisecond whenever it is read: before and after each token."""
    one, ticks = spec_of(CUSTOM), itertools.count()
    shared(one.recipe, one.cache, one.device)
    monkeypatch.setattr("trials.evaluate.efficiency.time.perf_counter", lambda: next(ticks) / 1000)
    assert latency(one) == pytest.approx(1.0)


def test_latency_of_an_architecture_beyond_the_teacher_is_refused(spec_of: Callable[[Architecture], TrialSpec]) -> None:
    with pytest.raises(InputError):
        latency(spec_of(Architecture.uniform(99, 32, 2, 64)))


def test_latency_counts_neither_the_prompt_nor_the_first_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that every forward pass moves: 100 s for a prompt, 10 s for each of the first two, then 1 s."""
    model, clock = make_gpt2(), [0.0]
    durations = itertools.cycle([100.0, 10.0, 10.0, 1.0, 1.0, 1.0])
    forward = model.forward

    def slow(*arguments: object, **named: torch.Tensor) -> object:
        clock[0] += next(durations)
        return forward(*arguments, **named)

    monkeypatch.setattr(type(model), "forward", lambda self, *arguments, **named: slow(*arguments, **named))
    monkeypatch.setattr("trials.evaluate.efficiency.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("trials.evaluate.efficiency._arguments", lambda _: ("past_key_values", {}))
    assert generation_milliseconds(model, Workload(prompt=8, batch=1, steps=3, warmup=2)) == 1000.0


def test_a_busy_neighbour_does_not_change_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of ten tokens take up to fifty times as long."""
    chance = random.Random(0)
    steps = [1.0] * 12 + [chance.uniform(1, 50) for _ in range(108)]
    chance.shuffle(steps)
    parts = iter([steps[start : start + 30] for start in range(0, 120, 30)])
    monkeypatch.setattr("trials.evaluate.efficiency._step_seconds", lambda *_: [9.0, 9.0, 9.0, *next(parts)])
    assert generation_milliseconds(make_gpt2(), Workload(prompt=8, batch=1, steps=30)) == 1000.0
