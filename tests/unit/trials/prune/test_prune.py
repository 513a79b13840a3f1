"""The parts that stay when a teacher is pruned, and students from weights. The contract suite compares with masks."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_gpt2
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_model
from transformers import GPT2LMHeadModel

from search_spaces.architecture import Architecture
from trials.families.lookup import family_of
from trials.prune.importance import ImportanceScores, compute_importance
from trials.prune.prune import choose, prune, student_from

ARCHITECTURES = (Architecture.uniform(2, 36, 3, 64), Architecture(2, 40, (4, 1), (10, 96)))


def scores_of(hidden: list[float]) -> ImportanceScores:
    one = np.ones((1, 1), dtype=np.float32)
    return ImportanceScores(one[0], np.array(hidden, dtype=np.float32), one, one)


@given(scores=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), data=st.data())
def test_highest_scores_stay_in_their_order(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    kept = choose(scores_of(scores), Architecture.uniform(1, count, 1, 1)).hidden.tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == count
    lost = [score for place, score in enumerate(scores) if place not in kept]
    assert not lost or min(scores[place] for place in kept) >= max(lost)


@given(scores=st.lists(st.integers(0, 3), min_size=2, max_size=30))
def test_a_smaller_choice_is_part_of_a_larger_one(scores: list[int]) -> None:
    choices = [
        set(choose(scores_of(list(map(float, scores))), Architecture.uniform(1, count, 1, 1)).hidden.tolist())
        for count in range(1, len(scores) + 1)
    ]
    assert all(smaller < larger for smaller, larger in pairwise(choices))


def test_of_equal_scores_the_earlier_stays() -> None:
    scores = scores_of([1.0] * 500 + [2.0] + [1.0] * 500)  # enough to detect an unstable sort
    assert choose(scores, Architecture.uniform(1, 301, 1, 1)).hidden.tolist() == [*range(300), 500]


def test_heads_and_neurons_are_chosen_by_the_scores_of_their_own_layer() -> None:
    scores = ImportanceScores(
        layers=np.array([3, 1, 2], dtype=np.float32),
        hidden=np.ones(4, dtype=np.float32),
        heads=np.array([[1, 0], [9, 9], [0, 1]], dtype=np.float32),
        mlp=np.array([[0, 0, 1], [9, 9, 9], [1, 0, 1]], dtype=np.float32),
    )
    kept = choose(scores, Architecture(2, 4, (1, 1), (1, 2)))
    assert kept.layers.tolist() == [0, 2]
    assert [heads.tolist() for heads in kept.heads] == [[0], [1]]
    assert [mlp.tolist() for mlp in kept.mlp] == [[2], [0, 2]]


def test_layers_that_are_named_stay_whatever_their_scores(tiny_gpt2: GPT2LMHeadModel, scores: ImportanceScores) -> None:
    tokens = torch.arange(60).view(4, 15)
    for layers in combinations(range(3), 2):
        named = replace(Architecture.uniform(2, 48, 4, 96), kept_layers=layers)
        assert choose(scores, named).layers.tolist() == list(layers)
        others = copy.deepcopy(tiny_gpt2)
        others.transformer.h = torch.nn.ModuleList(others.transformer.h[layer] for layer in layers)
        torch.testing.assert_close(prune(tiny_gpt2, scores, named)(tokens).logits, others(tokens).logits)


def test_dead_parts_go_first_and_are_not_missed() -> None:
    teacher = make_gpt2()
    with torch.no_grad():
        for layer, head, neurons in ((0, 2, slice(10, 30)), (1, 0, slice(0, 20)), (2, 3, slice(76, 96))):
            block = teacher.transformer.h[layer]
            value = slice(2 * 48 + 12 * head, 2 * 48 + 12 * (head + 1))
            block.attn.c_attn.weight[:, value] = 0
            block.attn.c_attn.bias[value] = 0
            block.mlp.c_fc.weight[:, neurons] = 0
            block.mlp.c_fc.bias[neurons] = 0
        for product in (teacher.transformer.h[1].attn.c_proj, teacher.transformer.h[1].mlp.c_proj):
            product.weight.zero_()
            product.bias.zero_()
    tokens = torch.arange(60).view(4, 15)
    scores = compute_importance(teacher, family_of(teacher.config), tokens)
    student = prune(teacher, scores, Architecture.uniform(2, 48, 3, 76))
    torch.testing.assert_close(student(tokens).logits, teacher(tokens).logits, rtol=0, atol=1e-5)


@pytest.fixture
def scores(tiny_gpt2: GPT2LMHeadModel) -> ImportanceScores:
    return compute_importance(tiny_gpt2, family_of(tiny_gpt2.config), torch.arange(60).view(4, 15))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.key)
@pytest.mark.parametrize("way", ["state_dict", "save_pretrained", "save_model"])
def test_student_comes_back_from_its_weights(
    tiny_gpt2: GPT2LMHeadModel, scores: ImportanceScores, architecture: Architecture, way: str, tmp_path: Path
) -> None:
    student = prune(tiny_gpt2, scores, architecture)
    if way == "state_dict":
        state = student.state_dict()
    elif way == "save_pretrained":
        student.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    else:
        save_model(student, str(tmp_path / "weights.safetensors"))
        state = load_file(tmp_path / "weights.safetensors")
    again = student_from(tiny_gpt2.config, architecture, state)
    tokens = torch.arange(20).view(1, 20)
    assert torch.equal(again(tokens).logits, student(tokens).logits)
    assert again.lm_head.weight is again.transformer.wte.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("transformer.ln_f.bias"), "lack transformer.ln_f.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "have an unknown tensor extra"),
        (lambda state: state.update({"transformer.ln_f.bias": torch.zeros(2)}), "do not fit architecture d2-"),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.key)
def test_wrong_weights_are_refused(
    tiny_gpt2: GPT2LMHeadModel, scores: ImportanceScores, architecture: Architecture, change: object, message: str
) -> None:
    state = dict(prune(tiny_gpt2, scores, architecture).state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        student_from(tiny_gpt2.config, architecture, state)


def test_building_a_student_draws_no_random_number(tiny_gpt2: GPT2LMHeadModel, scores: ImportanceScores) -> None:
    for architecture in ARCHITECTURES:
        before = torch.get_rng_state()
        prune(tiny_gpt2, scores, architecture)
        assert torch.equal(torch.get_rng_state(), before)
