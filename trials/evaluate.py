"""How good a model is at predicting held-out text."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from trials.families import Family
from trials.kl import chunk_tokens
from trials.precision import autocast

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


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
