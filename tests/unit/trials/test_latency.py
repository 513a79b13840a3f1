"""The latency of an architecture is that of a model of its shape, and of generated tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_gpt2
from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials import screen as file
from trials.evaluate.efficiency import Workload, generation_milliseconds
from trials.preparation import shared
from trials.recipe import Recipe
from trials.screen import latency
from trials.trial import TrialSpec

CUSTOM = Architecture(2, 40, (4, 2), (10, 96))


@pytest.fixture(scope="module")
def spec(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], TrialSpec]:
    folder = tmp_path_factory.mktemp("latency")
    (folder / "text.txt").write_text(
        "\n\n".join("the teacher is pruned and distilled for a while " * 9 for _ in range(60))
    )
    recipe = Recipe(str(tiny_teacher_folder), str(folder / "text.txt"), 64, (64,), 64, 32, 64, 3e-3, 4, 0)
    return lambda one: TrialSpec(recipe, one, str(folder / "trial"), str(folder / "cache"))


def test_it_is_of_a_model_of_that_shape(
    spec: Callable[[Architecture], TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, Workload]] = []

    def record(model: PreTrainedModel, workload: Workload) -> float:
        timed.append((sum(one.numel() for one in model.parameters()), workload))
        return 7.0

    monkeypatch.setattr(file, "generation_milliseconds", record)
    one = spec(CUSTOM)
    assert latency(one) == 7.0
    shape = shared(one.recipe, one.cache, one.device).teacher.shape
    assert timed == [(shape.parameters(CUSTOM), Workload.within(32, batch=1))]
    assert not Path(one.directory).exists()


def test_a_custom_shape_generates(spec: Callable[[Architecture], TrialSpec]) -> None:
    assert 0 < latency(spec(CUSTOM)) < float("inf")


def test_an_architecture_beyond_the_teacher_is_refused(spec: Callable[[Architecture], TrialSpec]) -> None:
    with pytest.raises(InputError):
        latency(spec(Architecture.uniform(99, 32, 2, 64)))


def test_the_prompt_and_the_first_tokens_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that every forward pass moves: 100 s for the prompt, 10 s for each of the first two, then 1 s."""
    model, clock = make_gpt2(), [0.0]
    durations = iter([100.0, 10.0, 10.0, 1.0, 1.0, 1.0])
    forward = model.forward

    def slow(*arguments: object, **named: torch.Tensor) -> object:
        clock[0] += next(durations)
        return forward(*arguments, **named)

    monkeypatch.setattr(type(model), "forward", lambda self, *arguments, **named: slow(*arguments, **named))
    monkeypatch.setattr("trials.evaluate.efficiency.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("trials.evaluate.efficiency._arguments", lambda _: ("past_key_values", {}))
    assert generation_milliseconds(model, Workload(prompt=8, batch=1, steps=3, warmup=2)) == 1000.0
