"""Losses on validation text: measured window by window, and averaged to one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trials.losses.kl import chunk_tokens
from trials.losses.precision import autocast

if TYPE_CHECKING:  # model code takes seconds to import, and processes that only read stored losses do not need it
    from transformers import PreTrainedModel

    from trials.families.base import Family

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}

# Maps the name of a validation text to the loss of each of its windows in nats per token, shape (n,).
WindowLosses = Mapping[str, NDArray[np.float64]]


def mean_loss(losses: WindowLosses) -> float:
    """The loss that compares candidates: the mean over texts of their mean losses. Every text has the same weight."""
    return float(np.mean([one.mean() for one in losses.values()]))


def text_losses(losses: WindowLosses) -> dict[str, float]:
    """The mean loss on each text, by name; empty if there is only one text."""
    return {name: float(one.mean()) for name, one in losses.items()} if len(losses) > 1 else {}


def validation_loss(
    model: PreTrainedModel, family: Family, windows: NDArray[np.integer], batch: int | None = None
) -> float:
    """Mean next-token cross-entropy of ``windows`` (n, length) in nats per predicted token; see `window_losses`."""
    return float(window_losses(model, family, windows, batch).mean())


@torch.no_grad()
def window_losses(
    model: PreTrainedModel, family: Family, windows: NDArray[np.integer], batch: int | None = None
) -> NDArray[np.float64]:
    """Mean next-token cross-entropy of each of ``windows`` (n, length), in nats per predicted token, shape (n,).

    Windows are independent, so each gives length - 1 predictions. ``batch`` windows are processed at a time; the
    default is `BATCH_TOKENS` tokens. On a CPU the model runs in float32, because bfloat16 changes the loss by more than
    close candidates differ. On CUDA matrix products run in the training dtype.
    """
    device = model.device.type
    batch = batch or max(1, BATCH_TOKENS[device] // windows.shape[1])
    losses: list[Tensor] = []
    model.eval()  # stays in eval mode afterwards, because this project never uses dropout
    for start in range(0, len(windows), batch):
        tokens = torch.from_numpy(windows[start : start + batch].astype(np.int64)).to(model.device)
        with torch.autocast(device, enabled=False) if device == "cpu" else autocast(device):
            losses.append(_token_losses(model, family, tokens).double().mean(dim=1))
    found: NDArray[np.float64] = torch.cat(losses).cpu().numpy()
    return found


def _token_losses(model: PreTrainedModel, family: Family, tokens: Tensor) -> Tensor:
    """The cross-entropy of ``tokens`` (B, T) without the first of each row, (B, T - 1), in float32."""
    return state_losses(family.backbone(model, tokens), family.output_weight(model), tokens)


def state_losses(states: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """The cross-entropy in nats of ``tokens`` (B, T) without the first of each row, (B, T - 1), in float32.

    ``states`` (B, T, H) are the states after the final norm; ``weight`` (V, H) is the output projection.
    """
    hidden, targets = states[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    losses = torch.empty(targets.shape, dtype=torch.float32, device=tokens.device)
    chunk = chunk_tokens(weight.shape[0], tokens.device.type)
    parts = (torch.split(one, chunk) for one in (hidden, targets, losses))
    for own, target, loss in zip(*parts, strict=True):
        logits = F.linear(own.to(weight.dtype), weight)
        loss.copy_(F.cross_entropy(logits.float(), target, reduction="none"))
    return losses.reshape(len(tokens), -1)
