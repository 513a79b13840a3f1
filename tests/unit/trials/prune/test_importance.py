"""The scores against their formula, computed with a second implementation of the forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gpt2_reference
import numpy as np
import pytest
import torch
from conftest import make_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.prune import importance
from trials.prune.head_order import head_losses
from trials.prune.importance import ImportanceScores, compute_importance, load_importance
from trials.prune.layer_order import removal_losses
from trials.prune.neuron_order import elimination_losses
from trials.storage.cache import Cache
from trials.teacher.teacher import Teacher

NAMES = ("layers", "hidden", "heads", "mlp")


def tokens_of(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(320, (count, length), generator=torch.Generator().manual_seed(seed))


def expected_scores(model: GPT2LMHeadModel, texts: list[Tensor]) -> ImportanceScores:
    """The formula of `compute_importance` for a list of unpadded texts (T,), in float64."""
    traces = []
    for text in texts:
        trace = gpt2_reference.Trace()
        gpt2_reference.masked_logits(model, text[None], gpt2_reference.everything(model), trace)
        traces.append(trace)

    def over_texts(magnitudes: list[Tensor]) -> Tensor:  # one (T, C) for each text
        return torch.stack([one.mean(dim=0) for one in magnitudes]).square().sum(dim=0).sqrt()

    layers, norms = range(model.config.n_layer), range(2 * model.config.n_layer + 1)
    heads = [over_texts([one.heads[layer][0].norm(dim=-1) for one in traces]) for layer in layers]
    mlp = [over_texts([one.mlp[layer][0].abs() for one in traces]) for layer in layers]
    hidden = sum(over_texts([one.norms[place][0].abs() for one in traces]) for place in norms)
    block = []
    for layer in layers:
        pairs = [(one.residual[layer][0], one.residual[layer + 1][0]) for one in traces]
        cosines = torch.cat([torch.cosine_similarity(before, after, dim=-1) for before, after in pairs])
        block.append(1 - cosines.mean())
    return ImportanceScores(
        *(values.float().numpy() for values in (torch.stack(block), hidden, torch.stack(heads), torch.stack(mlp)))
    )


def assert_same(found: ImportanceScores, expected: ImportanceScores, rtol: float = 1e-5) -> None:
    for name in NAMES:
        array = getattr(found, name)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, getattr(expected, name), rtol=rtol, atol=1e-6, err_msg=name)


def compute(model: GPT2LMHeadModel, *args: object, **kwargs: object) -> ImportanceScores:
    return compute_importance(model, family_of(model.config), *args, **kwargs)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_follow_the_formula(tied: bool) -> None:
    model = make_gpt2(seed=3, tie_word_embeddings=tied)
    tokens = tokens_of(5, 13)
    assert_same(compute(model, tokens), expected_scores(model, list(tokens)))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 7), batch=st.integers(1, 8))
def test_batches_change_no_score(tiny_gpt2: GPT2LMHeadModel, count: int, batch: int) -> None:
    tokens = tokens_of(count, 9)
    assert_same(compute(tiny_gpt2, tokens, batch=batch), compute(tiny_gpt2, tokens, batch=count))


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    left=st.booleans(),
    padding=st.integers(0, 319),
    batch=st.integers(1, 4),
)
def test_padding_is_counted_nowhere(
    tiny_gpt2: GPT2LMHeadModel, lengths: list[int], left: bool, padding: int, batch: int
) -> None:
    width = 12
    tokens = torch.full((len(lengths), width), padding)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    texts = [tokens_of(1, length, seed)[0] for seed, length in enumerate(lengths)]
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        tokens[row, place], mask[row, place] = text, True
    assert_same(compute(tiny_gpt2, tokens, mask, batch=batch), expected_scores(tiny_gpt2, texts))


def test_a_window_of_padding_alone_changes_nothing(tiny_gpt2: GPT2LMHeadModel) -> None:
    tokens = tokens_of(3, 8)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[2] = False
    assert_same(compute(tiny_gpt2, tokens, mask), compute(tiny_gpt2, tokens[:2]))


def test_the_model_is_left_as_it_was(tiny_gpt2: GPT2LMHeadModel) -> None:
    compute(tiny_gpt2, tokens_of(1, 4))
    assert not any(module._forward_hooks for module in tiny_gpt2.modules())


def test_weights_that_are_not_finite_are_refused() -> None:
    model = make_gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        compute(model, tokens_of(1, 4))


def test_scores_come_back_from_a_file(tiny_gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    scores = compute(tiny_gpt2, tokens_of(2, 8))
    scores.save(tmp_path / "scores.npz")
    assert_same(ImportanceScores.load(tmp_path / "scores.npz"), scores, rtol=0)


@pytest.fixture
def teacher(tiny_gpt2: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Teacher:
    shape = shape_of(tiny_gpt2.config)
    return Teacher(tmp_path / "teacher", tiny_gpt2, tiny_tokenizer, shape, "fingerprint")


def windows_of(seed: int = 0, dtype: type = np.uint16) -> np.ndarray:
    return tokens_of(3, 8, seed).numpy().astype(dtype)


def test_the_second_time_scores_come_from_the_cache(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, from_cache = load_importance(teacher, windows_of(), Cache(tmp_path))
    assert not from_cache
    tokens = torch.from_numpy(windows_of().astype(np.int64))
    family = family_of(teacher.model.config)
    layers, mlp = (one(teacher.model, family, tokens) for one in (removal_losses, elimination_losses))
    heads = head_losses(teacher.model, family, tokens, teacher.shape.head_dim)
    assert_same(first, replace(compute(teacher.model, tokens), layers=layers, heads=heads, mlp=mlp))
    monkeypatch.setattr(importance, "compute_importance", None)  # another computation would fail
    second, from_cache = load_importance(teacher, windows_of(dtype=np.uint32), Cache(tmp_path))
    assert from_cache
    assert_same(second, first, rtol=0)


@pytest.mark.parametrize("change", ["weights", "tokens", "window length", "version"])
def test_what_the_scores_depend_on_is_in_the_key(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    load_importance(teacher, windows_of(), Cache(tmp_path))
    windows = windows_of(seed=1) if change == "tokens" else windows_of()
    if change == "weights":
        teacher = replace(teacher, fingerprint="other")
    if change == "window length":
        windows = windows.reshape(6, 4)
    if change == "version":
        monkeypatch.setattr(importance, "SCORING_VERSION", importance.SCORING_VERSION + 1)
    assert not load_importance(teacher, windows, Cache(tmp_path))[1]


def test_damaged_scores_are_computed_again(teacher: Teacher, tmp_path: Path) -> None:
    first, _ = load_importance(teacher, windows_of(), Cache(tmp_path))
    [file] = tmp_path.rglob("scores.npz")
    file.write_bytes(file.read_bytes()[:-1])
    again, from_cache = load_importance(teacher, windows_of(), Cache(tmp_path))
    assert not from_cache
    assert_same(again, first, rtol=0)
