"""The validation loss is the mean next-token cross-entropy, for all batch sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import VOCAB, make_gpt2
from transformers import GPT2LMHeadModel

from trials.families.lookup import FAMILIES
from trials.losses import kl
from trials.losses.window_losses import validation_loss

GPT2 = FAMILIES["gpt2"]


def text(windows: int, length: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (windows, length), dtype=np.uint16)


@pytest.mark.parametrize("batch", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * VOCAB * 10, 2**30])
def test_is_the_mean_over_all_predictions(
    tiny_gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch, batch: int | None, chunk_bytes: int
) -> None:
    monkeypatch.setitem(kl.CHUNK_BYTES, "cpu", chunk_bytes)
    windows = text(7)
    tokens = torch.from_numpy(windows.astype(np.int64))
    logits = tiny_gpt2(tokens).logits.double()
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert validation_loss(tiny_gpt2, GPT2, windows, batch) == pytest.approx(float(wanted), rel=1e-6)


def test_every_window_is_read_on_its_own(tiny_gpt2: GPT2LMHeadModel) -> None:
    windows = text(4)
    losses = [validation_loss(tiny_gpt2, GPT2, windows[place : place + 1]) for place in range(4)]
    assert validation_loss(tiny_gpt2, GPT2, windows[::-1]) == pytest.approx(float(np.mean(losses)), rel=1e-6)


def test_knowing_nothing_costs_the_logarithm_of_the_vocabulary() -> None:
    model = make_gpt2()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert validation_loss(model, GPT2, text(3)) == pytest.approx(np.log(VOCAB), rel=1e-6)


def test_is_deterministic_with_dropout_and_under_autocast() -> None:
    model = make_gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    windows = text(5)
    first = validation_loss(model, GPT2, windows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert validation_loss(model, GPT2, windows) == first == validation_loss(make_gpt2(), GPT2, windows)
