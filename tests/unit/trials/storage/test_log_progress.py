"""Long steps tell how far they are, and short ones do not."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import make_gpt2

from trials.families.lookup import FAMILIES
from trials.prune.head_order import head_losses
from trials.prune.layer_order import removal_losses
from trials.prune.neuron_order import elimination_losses
from trials.storage import progress
from trials.storage.progress import counted


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every item takes as long as a message waits for."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    caplog.set_level(logging.INFO, "trials")
    return caplog


def test_every_item_is_passed_on_and_the_last_is_not_told(always: pytest.LogCaptureFixture) -> None:
    assert list(counted("abc", 3_000, "letters", 1_000)) == ["a", "b", "c"]
    assert always.messages == ["letters: 1,000 of 3,000", "letters: 2,000 of 3,000"]


def test_a_short_step_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trials")
    assert list(counted(range(1_000), 1_000, "numbers")) == list(range(1_000))
    assert not caplog.messages


def test_ranking_tells_its_layers(always: pytest.LogCaptureFixture) -> None:
    model, family, windows = make_gpt2(), FAMILIES["gpt2"], torch.arange(64).reshape(2, 32)
    elimination_losses(model, family, windows)
    head_losses(model, family, windows, 12)
    removal_losses(model, family, windows)
    what = ("neurons are ranked, layers", "heads are ranked, layers", "layers are ranked")
    assert always.messages == [f"{one}: {place} of 3" for one in what for place in (1, 2)]
