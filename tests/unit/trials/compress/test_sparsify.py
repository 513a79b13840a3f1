"""Sparse students: exact levels, masks that hold, resumes without a trace, and weights that survive baking."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_gpt2
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from search_spaces.compression import METHODS, Sparsity
from search_spaces.errors import InputError
from trials.compress.matrices import layer_matrices
from trials.compress.sparsify import Sparsifier, bake, held, level_at, measured_sparsity, sparsify
from trials.distill.distill import make_optimizer

WINDOWS = np.random.default_rng(3).integers(0, 320, (4, 32))
TOKENS = torch.from_numpy(WINDOWS)
MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": make_gpt2,
    "llama": lambda: make_decoder("llama"),
    "untied llama": lambda: make_decoder("llama", tie_word_embeddings=False),
    "gpt_neox": lambda: make_decoder("gpt_neox"),
}
RECIPES = {
    **{method: Sparsity(0.6, method=method) for method in METHODS},
    **{f"{method} 2:4": Sparsity(0.5, "2:4", method=method) for method in METHODS},
    "ramp": Sparsity(0.7, start=0.2, end=0.8),
    "ramp of wanda on the MLP": Sparsity(0.7, matrices=("mlp",), method="wanda", start=0.0, end=1.0),
    "ramp to 2:4": Sparsity(0.5, "2:4", start=0.0, end=0.5),
    "aware": Sparsity(0.5, method="pdp", tau=0.01, warmup=0.4, beta=3, mask_aware=True),
}
STEPS = 6


def student(family: str = "gpt2") -> PreTrainedModel:
    return MAKERS[family]().requires_grad_(True)


def train(model: PreTrainedModel, masks: Sparsifier, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps ``first`` to ``last`` of `STEPS`, with gradients of the text's loss."""
    for step in range(first, last):
        masks.before_step(step, STEPS)
        optimizer.zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        masks.after_step(optimizer)


def weights(model: PreTrainedModel, sparsity: Sparsity) -> list[Tensor]:
    return [one.weight.detach().clone() for one in layer_matrices(model, sparsity.matrices)]


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_hard_students_have_the_level_and_baked_ones_the_same_logits(recipe: str, family: str, tmp_path: Path) -> None:
    model, sparsity = student(family), RECIPES[recipe]
    masks = sparsify(model, sparsity, WINDOWS)
    train(model, masks, make_optimizer(model, 1e-2), 0, STEPS)
    masks.harden()
    for weight in weights(model, sparsity):
        assert abs(int((weight == 0).sum()) - sparsity.level * weight.numel()) < 1
        if sparsity.kind == "2:4":
            assert bool(((weight == 0).reshape(-1, 4).sum(dim=1) == 2).all())
    assert measured_sparsity(model, sparsity.matrices) == pytest.approx(sparsity.level, abs=1e-3)
    before = model(TOKENS).logits
    bake(model)
    assert torch.equal(model(TOKENS).logits, before)
    assert measured_sparsity(model, sparsity.matrices) == masks.level
    assert model.state_dict().keys() == student(family).state_dict().keys()
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits, before)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stop", [0, 2, 4])
def test_a_resumed_run_is_an_uninterrupted_one(recipe: str, stop: int, tmp_path: Path) -> None:
    sparsity, whole = RECIPES[recipe], student()
    masks = sparsify(whole, sparsity, WINDOWS)
    optimizer = make_optimizer(whole, 1e-2)
    train(whole, masks, optimizer, 0, stop)
    save_model(whole, str(tmp_path / "student"))
    state = copy.deepcopy(optimizer.state_dict())
    train(whole, masks, optimizer, stop, STEPS)

    resumed = student()
    again = sparsify(resumed, sparsity, WINDOWS)
    optimizer = make_optimizer(resumed, 1e-2)
    load_model(resumed, str(tmp_path / "student"))
    optimizer.load_state_dict(state)
    with again.hard():  # an evaluation leaves no trace
        resumed(TOKENS)
    train(resumed, again, optimizer, stop, STEPS)
    masks.harden()
    again.harden()
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("recipe", [name for name, one in RECIPES.items() if one.method != "pdp"])
def test_masked_weights_stay_at_0_through_steps_with_momentum_and_decay(recipe: str) -> None:
    model, sparsity = student(), RECIPES[recipe]
    masks = sparsify(model, sparsity, WINDOWS)
    optimizer = make_optimizer(model, 1e-2)
    gone = [one == 0 for one in weights(model, sparsity)]
    levels = []
    for step in range(STEPS):
        train(model, masks, optimizer, step, step + 1)
        now = [one == 0 for one in weights(model, sparsity)]
        assert all(bool((after | ~before).all()) for before, after in zip(gone, now, strict=True))
        stored = [one.module.parametrizations.weight.original for one in layer_matrices(model, sparsity.matrices)]
        assert [int((one == 0).sum()) for one in stored] == [int(one.sum()) for one in now]
        gone = now
        levels.append(measured_sparsity(model, sparsity.matrices))
        assert levels[-1] == masks.level == pytest.approx(level_at(sparsity, step, STEPS), abs=1e-3)
    assert levels == sorted(levels)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_soft_masks_are_hard_only_inside_hard_and_at_the_end(family: str) -> None:
    model, sparsity = student(family), Sparsity(0.8, method="pdp", warmup=1.0)
    masks = sparsify(model, sparsity, WINDOWS)
    plain = student(family)(TOKENS).logits
    with masks.hard():
        assert torch.equal(model(TOKENS).logits, plain)  # nothing is gone yet
    masks.before_step(2, STEPS)
    soft = model(TOKENS).logits
    with masks.hard():
        assert measured_sparsity(model) == masks.level == pytest.approx(0.4, abs=1e-3)
        assert not torch.equal(model(TOKENS).logits, soft)
    assert torch.equal(model(TOKENS).logits, soft)
    masks.before_step(STEPS - 1, STEPS)
    with masks.hard():
        last = model(TOKENS).logits
    masks.harden()
    assert torch.equal(model(TOKENS).logits, last)
    masks.before_step(0, STEPS)
    assert measured_sparsity(model) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("family", MAKERS)
def test_zeros_of_a_sparse_student_are_held_in_later_training(family: str) -> None:
    model, sparsity = student(family), Sparsity(0.6, matrices=("mlp",))
    sparsify(model, sparsity, WINDOWS)
    bake(model)
    before = weights(model, sparsity)
    masks = held(model, sparsity)
    assert masks.level == measured_sparsity(model, ("mlp",))
    train(model, masks, make_optimizer(model, 1e-2), 0, STEPS)
    masks.harden()
    bake(model)
    for one, other in zip(before, weights(model, sparsity), strict=True):
        assert torch.equal(one == 0, other == 0)
        assert not torch.equal(one, other)


ramps = st.tuples(st.floats(0.1, 0.95), st.floats(0, 1), st.floats(0, 1), st.integers(1, 50))


@given(ramps)
def test_the_cubic_ramp_starts_at_0_ends_at_the_level_and_never_falls(ramp: tuple[float, float, float, int]) -> None:
    level, one, other, steps = ramp
    sparsity = Sparsity(level, start=min(one, other), end=max(one, other))
    found = [level_at(sparsity, step, steps) for step in range(-1, steps + 1)]
    assert found == sorted(found)
    assert found[0] == (0 if sparsity.end else sparsity.level)
    assert found[-1] == sparsity.level
    for step, value in enumerate(found[1:]):
        if step <= sparsity.start * steps and sparsity.start < sparsity.end:
            assert value == 0
        if step >= sparsity.end * steps:
            assert value == sparsity.level


def test_the_cubic_ramp_is_that_of_the_paper() -> None:
    found = [level_at(Sparsity(0.8, start=0.2, end=0.6), step, 10) for step in range(8)]
    assert found == pytest.approx([0, 0, 0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8, 0.8])


@given(st.floats(0, 1), st.integers(1, 50))
def test_the_warm_up_of_pdp_is_linear(warmup: float, steps: int) -> None:
    sparsity = Sparsity(0.8, method="pdp", warmup=warmup)
    found = [level_at(sparsity, step, steps) for step in range(-1, steps)]
    assert found[0] == (0 if sparsity.warmup else 0.8)
    assert found[-1] == 0.8
    rises = [after - before for before, after in pairwise(found)]
    assert all(one == pytest.approx(rises[0]) for one in rises[: int(sparsity.warmup * steps)])


def test_2_4_on_an_odd_size_is_refused_with_the_matrix_and_its_size() -> None:
    model = make_gpt2(n_inner=94)
    with pytest.raises(InputError, match=r"^sparsity.kind '2:4': transformer.h.0.mlp.c_proj has 94 inputs"):
        sparsify(model, Sparsity(0.5, "2:4"), WINDOWS)
    sparsify(model, Sparsity(0.5, "2:4", ("attention",)), WINDOWS)


@pytest.mark.parametrize("kind", ["unstructured", "2:4"])
def test_second_order_keeps_more_of_the_model_than_scores_do(kind: str) -> None:
    lost = {}
    plain = student()(TOKENS).logits
    for method in ("magnitude", "wanda", "sparsegpt"):
        model = student()
        sparsify(model, Sparsity(0.5, kind, method=method), WINDOWS)
        lost[method] = float((model(TOKENS).logits - plain).square().mean())
    assert lost["sparsegpt"] < min(lost["magnitude"], lost["wanda"])
