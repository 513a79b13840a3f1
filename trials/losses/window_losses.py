"""Losses on held-out text, window by window: how they are measured, and the one number that they come to."""

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

if TYPE_CHECKING:  # the code of models takes seconds to import, and whoever only reads losses needs none
    from transformers import PreTrainedModel

    from trials.families.base import Family

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}

# By the name of a validation text: the loss of each of its windows in nats per token, shape (n,).
WindowLosses = Mapping[str, NDArray[np.float64]]
OF_TEXT = "val_loss/"  # before the name of a text: the metric that is the loss on it


def mean_loss(losses: WindowLosses) -> float:
    """The one number by which candidates are compared: the mean over texts, each counting alike, of their losses."""
    return float(np.mean([one.mean() for one in losses.values()]))


def text_losses(losses: WindowLosses) -> dict[str, float]:
    """The mean loss on each text; nothing where there is one text alone, whose mean is all there is to say."""
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

    Every window is read on its own, so each gives length - 1 predictions. ``batch`` windows are read at a time;
    by default as many as make `BATCH_TOKENS`. In float32 on a CPU, where a bfloat16 forward moves the loss by more
    than close candidates differ; on CUDA with the products in the training format.
    """
    device = model.device.type
    batch = batch or max(1, BATCH_TOKENS[device] // windows.shape[1])
    losses: list[Tensor] = []
    model.eval()  # and it stays so: dropout is never wanted here
    for start in range(0, len(windows), batch):
        tokens = torch.from_numpy(windows[start : start + batch].astype(np.int64)).to(model.device)
        with torch.autocast(device, enabled=False) if device == "cpu" else autocast(device):
            losses.append(_token_losses(model, family, tokens).double().mean(dim=1))
    found: NDArray[np.float64] = torch.cat(losses).cpu().numpy()
    return found


def _token_losses(model: PreTrainedModel, family: Family, tokens: Tensor) -> Tensor:
    """Of ``tokens`` (B, T), the cross-entropy of all but the first of each row, (B, T - 1), in float32."""
    return state_losses(family.backbone(model, tokens), family.output_weight(model), tokens)


def state_losses(states: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy in nats of all of ``tokens`` (B, T) but the first of each row, (B, T - 1), in float32.

    ``states`` (B, T, H) are those behind the final normalisation, ``weight`` (V, H) is the output projection.
    """
    hidden, targets = states[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    losses = torch.empty(targets.shape, dtype=torch.float32, device=tokens.device)
    chunk = chunk_tokens(weight.shape[0], tokens.device.type)
    parts = (torch.split(one, chunk) for one in (hidden, targets, losses))
    for own, target, loss in zip(*parts, strict=True):
        logits = F.linear(own.to(weight.dtype), weight)
        loss.copy_(F.cross_entropy(logits.float(), target, reduction="none"))
    return losses.reshape(len(tokens), -1)
