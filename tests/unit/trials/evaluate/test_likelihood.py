"""Scores are sums over the model's own logits, for all batch and chunk sizes, and all logits are never held."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from conftest import VOCAB, make_gpt2
from reading_models import make_gemma2, make_llama
from transformers import GPT2LMHeadModel, PreTrainedModel

from search_spaces.errors import InputError
from trials.evaluate.likelihood import Score, Window, score, total_nats
from trials.losses import kl
from trials.losses import window_losses as evaluate

MODELS = {"gpt2": make_gpt2, "llama": make_llama, "gemma2": make_gemma2}
CHUNK = 5  # rows of logits that may exist at a time


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def some_windows(count: int = 9) -> list[Window]:
    chance = random.Random(0)
    lengths = [chance.randint(2, 40) for _ in range(count)]
    return [Window([chance.randrange(VOCAB) for _ in range(n)], chance.randint(1, n - 1)) for n in lengths]


def expected(model: PreTrainedModel, window: Window) -> Score:
    """Expected scores from all logits of one window, in float64."""
    tokens = torch.tensor([window.tokens])
    logits = model(tokens).logits[0, -window.predicted - 1 : -1].double()
    targets = tokens[0, -window.predicted :]
    return Score(float(F.cross_entropy(logits, targets, reduction="sum")), bool((logits.argmax(-1) == targets).all()))


@pytest.mark.parametrize("batch_tokens", [1, 64, 10**6])
@pytest.mark.parametrize("chunk", [1, CHUNK, 10**6])
def test_scores_are_those_of_the_logits(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, chunk: int
) -> None:
    monkeypatch.setitem(evaluate.BATCH_TOKENS, "cpu", batch_tokens)
    monkeypatch.setitem(kl.CHUNK_BYTES, "cpu", 4 * VOCAB * chunk)
    windows = some_windows()
    for found, window in zip(score(model, windows), windows, strict=True):
        wanted = expected(model, window)
        assert found.nats == pytest.approx(wanted.nats, rel=1e-5)
        assert found.greedy == wanted.greedy


def test_greedy_is_true_of_the_likeliest_tokens_alone(tiny_gpt2: GPT2LMHeadModel) -> None:
    tokens = [5, 6, 7]
    for _ in range(4):
        tokens.append(int(tiny_gpt2(torch.tensor([tokens])).logits[0, -1].argmax()))
    wrong = [*tokens[:-1], (tokens[-1] + 1) % VOCAB]
    found = score(tiny_gpt2, [Window(tokens, 4), Window(wrong, 4), Window([*wrong, 1], 0)])
    assert [one.greedy for one in found] == [True, False, True]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_never_held_for_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(kl.CHUNK_BYTES, "cpu", 4 * VOCAB * CHUNK)
    model, rows = MODELS[name](), []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: rows.append(logits.numel() // VOCAB))
    windows = some_windows()
    score(model, windows)
    assert rows[:2] == [8, 8]  # the probe, by the model and by its parts
    assert max(rows[2:]) == CHUNK
    assert sum(rows[2:]) == sum(window.predicted for window in windows)


@pytest.mark.parametrize("limit", [1, 64, 100])
def test_batches_are_bounded_padding_included(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A single window may exceed the limit. A model that changes its logits processes one window at a time."""
    monkeypatch.setitem(evaluate.BATCH_TOKENS, "cpu", limit)
    shapes: list[torch.Size] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    score(model, some_windows())
    limit = 1 if model.config.model_type == "gemma2" else limit
    batches = [shape for shape in shapes if shape != (1, 8)]  # the probe
    assert all(shape.numel() <= limit or (len(shape) == 2 and shape[0] == 1) for shape in batches)
    assert any(shape[0] > 1 for shape in batches) == (limit > 1)


def test_advance_counts_every_token(tiny_gpt2: GPT2LMHeadModel) -> None:
    read: list[int] = []
    windows = some_windows()
    score(tiny_gpt2, windows, read.append)
    assert sum(read) == sum(len(window.tokens) for window in windows)


def test_no_windows_have_no_scores(tiny_gpt2: GPT2LMHeadModel) -> None:
    assert score(tiny_gpt2, []) == []
    assert total_nats([]) == 0


def test_numbers_that_are_none_are_refused() -> None:
    model = make_gpt2()
    model.transformer.ln_f.bias[0] = float("nan")
    with pytest.raises(InputError, match=r"'gpt2'.*float32"):
        score(model, some_windows())
