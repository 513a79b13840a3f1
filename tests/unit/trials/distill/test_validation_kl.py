"""The KL divergence on validation text is the plain one, and the teacher reads the text once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from distilling import CORPUS, MODEL, TEACHER, student
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel

from trials.distill.validation_kl import validation_kl
from trials.losses import window_losses
from trials.storage.cache import Cache
from trials.teacher import targets
from trials.text.corpus import windows

LONG, SHORT = windows(CORPUS.validation, 16), windows(CORPUS.train[:80], 16)


@torch.no_grad()
def plain(model: PreTrainedModel, text: NDArray[np.integer]) -> float:
    tokens = torch.from_numpy(text.astype(np.int64))
    own, wanted = (one(tokens).logits.double().log_softmax(-1).flatten(0, 1) for one in (model, MODEL))
    return float(F.kl_div(own, wanted, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("batch", [48, 2048])
def test_is_the_mean_over_texts_of_the_plain_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rounding: float, batch: int
) -> None:
    for module in ("teacher.targets", "losses.precision"):
        monkeypatch.setattr(f"trials.{module}.training_precision", lambda _: (dtype, "as this test says"))
    monkeypatch.setitem(window_losses.BATCH_TOKENS, "cpu", batch)
    model = student().float()
    expected = [plain(model, text) for text in (LONG, SHORT)]
    assert abs(expected[0] - expected[1]) > 0.01  # the texts have unequal numbers of windows and unequal losses
    found = validation_kl(model, TEACHER, {"long": LONG, "short": SHORT}, Cache(tmp_path))
    assert found == pytest.approx(np.mean(expected), rel=rounding)


def test_the_teacher_reads_a_text_once_and_is_its_own_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = targets._final_states
    monkeypatch.setattr(targets, "_final_states", lambda *given: read.append(1) or original(*given))
    model = student().float()
    first = validation_kl(model, TEACHER, {"text": LONG}, Cache(tmp_path))
    assert validation_kl(model, TEACHER, {"text": LONG}, Cache(tmp_path)) == first
    assert read == [1]
    assert abs(validation_kl(MODEL, TEACHER, {"text": LONG}, Cache(tmp_path))) < 1e-3 < first
