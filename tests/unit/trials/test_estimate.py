"""The estimate is proportional to the work; the measured speed is positive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_gpt2
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials import estimate
from trials.distill.distill import text_loss
from trials.estimate import (
    estimate_making_seconds,
    estimate_seconds,
    evaluation_flops,
    refit_flops,
    refit_windows,
    training_flops,
)
from trials.families.lookup import FAMILIES
from trials.families.shapes import shape_of
from trials.losses.kl import chunked_kl
from trials.prune.importance import compute_importance
from trials.prune.prune import choose, prune
from trials.prune.refit import refit
from trials.prune.rotate import rotation_to
from trials.recipe import Recipe
from trials.storage.cache import Cache
from trials.teacher.streams import load_streams
from trials.teacher.teacher import Teacher

MEDIUM = ModelShape("gpt2", 24, 1024, 16, 64, 4096, 50257, 1024, True)
RECIPE = Recipe("model", "corpus", 65536, (32768, 65536), 16384, 256, 1024, 1e-3, 64, 0)


@pytest.fixture(autouse=True)
def one_gigaflop_per_second(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "measured" not in request.node.name:
        monkeypatch.setattr(estimate, "_flops_per_second", lambda *_: 1e9)


def seconds(architecture: Architecture, recipe: Recipe = RECIPE) -> float:
    return estimate_seconds(MEDIUM, architecture, recipe, "cpu")


def test_twice_the_work_takes_twice_as_long() -> None:
    """Except for the part of a refit that does not depend on its tokens."""
    twice = replace(RECIPE, tokens=131072, rungs=(65536, 131072), validation_tokens=32768, calibration_samples=128)
    assert seconds(MEDIUM.full, twice) == pytest.approx(2 * seconds(MEDIUM.full), rel=0.01)


def test_every_axis_and_every_evaluation_counts() -> None:
    smaller = [
        Architecture.uniform(*sizes)
        for sizes in ((12, 1024, 16, 4096), (24, 512, 16, 4096), (24, 1024, 8, 4096), (24, 1024, 16, 2048))
    ]
    assert all(seconds(one) < seconds(MEDIUM.full) for one in smaller)
    assert seconds(MEDIUM.full, replace(RECIPE, rungs=(65536,))) < seconds(MEDIUM.full)


def test_stored_targets_spare_the_teacher_all_but_its_head_and_drawn_ones_that_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = training_flops(MEDIUM, MEDIUM.full, RECIPE, "cpu")
    online = training_flops(MEDIUM, MEDIUM.full, replace(RECIPE, teacher_targets="online"), "cpu")
    head = 2 * MEDIUM.vocab * MEDIUM.hidden
    assert online - stored == RECIPE.tokens * (MEDIUM.flops_per_token(MEDIUM.full, 256) - head)
    monkeypatch.setattr("trials.teacher.targets.LIMIT_BYTES", 0)
    assert stored - training_flops(MEDIUM, MEDIUM.full, RECIPE, "cpu") == RECIPE.tokens * head


def test_flops_are_those_of_a_step_and_an_evaluation() -> None:
    """torch counts them on a real model, with eager attention, whose products it can count."""
    model, family = make_gpt2().requires_grad_(True), FAMILIES["gpt2"]
    model.set_attn_implementation("eager")
    shape, tokens = shape_of(model.config), torch.arange(64).reshape(2, 32)
    recipe = replace(RECIPE, tokens=64, rungs=(64,), validation_tokens=64, sequence_length=32, batch_tokens=32)
    with FlopCounterMode(display=False) as counter:
        hidden, weight = family.backbone(model, tokens).flatten(0, 1), family.output_weight(model)
        chunked_kl(hidden, weight, hidden.detach(), weight.detach(), 64).backward()
    step = counter.get_total_flops()
    assert training_flops(shape, shape.full, recipe, "cpu") == step
    with FlopCounterMode(display=False) as counter:
        text_loss(hidden.detach().unflatten(0, (2, 32)).requires_grad_(), weight, tokens).backward()
    mixed = replace(recipe, text_share=0.5)
    assert training_flops(shape, shape.full, mixed, "cpu") == step + counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    assert evaluation_flops(shape, shape.full, recipe) == 2 * counter.get_total_flops()
    twice = replace(recipe, validation=(("more", "text"),))
    assert evaluation_flops(shape, shape.full, twice) == 4 * counter.get_total_flops()


def test_flops_are_what_a_refit_does(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, family = make_gpt2(), FAMILIES["gpt2"]
    shape, tokens = shape_of(model.config), torch.arange(96).reshape(3, 32)
    teacher = Teacher(tmp_path, model, tiny_tokenizer, shape, "fingerprint")
    streams = load_streams(teacher, tokens.numpy(), Cache(tmp_path))
    recipe = replace(RECIPE, sequence_length=32, calibration_samples=3)
    assert refit_windows(shape, recipe, "cpu") == 3
    for hidden in (40, 48):
        architecture, rotation = Architecture(2, hidden, (4, 2), (10, 96)), None
        if hidden < shape.hidden:
            rotation = rotation_to(model, family, streams.directions, hidden)
        scores = compute_importance(model, family, tokens)
        student, kept = prune(model, scores, architecture), choose(scores, architecture).layers.tolist()
        student.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            refit(student, family, kept, streams, rotation)
        assert refit_flops(shape, architecture, recipe, 3) == counter.get_total_flops()


@pytest.mark.parametrize("seconds", [0.001, 0.1, 10.0])
def test_measured_speed_is_products_over_their_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Whatever a product takes, and however many are needed for a measurement that is long enough."""
    counts: list[int] = []

    def products(tokens: torch.Tensor, matrix: torch.Tensor, count: int, clock: object) -> float:
        counts.append(count)
        disturbed = 5 if len(counts) % 3 == 0 else 1  # as by a neighbour
        return count * seconds * disturbed

    monkeypatch.setattr(estimate, "_products", products)
    estimate._flops_per_second.cache_clear()
    speed = estimate._flops_per_second(64, "cpu")
    estimate._flops_per_second.cache_clear()
    assert speed == pytest.approx(2 * estimate.PROBE_TOKENS["cpu"] * 64 * 256 / seconds)
    assert counts[-1] * seconds >= estimate.PROBE_SECONDS / 5


def test_making_a_student_is_part_of_a_trial_and_grows_with_the_calibration_text_alone() -> None:
    args = (MEDIUM, Architecture.uniform(12, 1024, 16, 4096))
    making = estimate_making_seconds(*args, RECIPE, "cpu")
    assert 0 < making < estimate_seconds(*args, RECIPE, "cpu")
    assert making == estimate_making_seconds(*args, replace(RECIPE, tokens=131072, rungs=(131072,)), "cpu")
    assert making < estimate_making_seconds(*args, replace(RECIPE, calibration_samples=128), "cpu")
    sliced = replace(RECIPE, refit=False)
    assert estimate_making_seconds(*args, sliced, "cpu") * 3 == pytest.approx(
        estimate._seconds(evaluation_flops(*args, sliced), MEDIUM, "cpu")
    )
