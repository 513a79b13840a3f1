"""Ranks attention heads for removal.

Removes one head of a layer at a time and always takes the one that the other heads replace best.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from trials.families.base import Family, matrix_of
from trials.prune.input_moments import input_moments
from trials.prune.neuron_order import scaled_problem
from trials.prune.refit import RIDGE
from trials.storage.progress import counted


def head_losses(model: PreTrainedModel, family: Family, windows: Tensor, head_dim: int) -> NDArray[np.float32]:
    """For each head, its layer's loss without it and without all heads removed before it; (L, A).

    See `eliminated_blocks`, and `trials.prune.input_moments` for what is measured on ``windows`` (n, T; token ids).
    """
    outputs = [family.attention_output(layer) for layer in family.layers(model)]
    seconds = input_moments(model, family, windows, outputs)
    found = map(partial(eliminated_blocks, size=head_dim), seconds, map(matrix_of, outputs))
    layers = counted(found, len(outputs), "heads are ranked, layers")
    return np.stack([losses.cpu().numpy() for losses in layers])


@torch.no_grad()
def eliminated_blocks(second: Tensor, weight: Tensor, size: int, ridge: float = RIDGE) -> Tensor:
    """As `trials.prune.neuron_order.eliminated`, for blocks of ``size`` inputs that go together; (n / size,).

    It is SlimGPT's order of heads (arXiv 2412.18110, section 3.2: Optimal Brain Surgeon for the blocks of the output
    projection), repeated after each removal. With P_bb the block of P for the inputs b, removing them costs

        tr(V_b P_bb^-1 V_b^T),   then V -= V_b P_bb^-1 P_b,   P -= P_b^T P_bb^-1 P_b.
    """
    inverse, fitted = scaled_problem(second, weight, ridge)
    left = [torch.arange(start, start + size, device=second.device) for start in range(0, len(second), size)]
    numbers, loss = list(range(len(left))), 0.0
    losses = torch.empty(len(left), dtype=torch.float64)
    while left:
        costs = [float((fitted[:, one] @ _solved(inverse, one) * fitted[:, one]).sum()) for one in left]
        place = int(np.argmin(costs))
        block, number = left.pop(place), numbers.pop(place)
        loss = max(loss + costs[place], float(np.nextafter(np.float32(loss), np.float32(np.inf))))
        losses[number] = loss
        share = _solved(inverse, block) @ inverse[block]
        fitted = fitted - fitted[:, block] @ share
        inverse = inverse - inverse[:, block] @ share
    return losses.float()


def _solved(inverse: Tensor, block: Tensor) -> Tensor:
    """P_bb^-1."""
    return torch.cholesky_inverse(torch.linalg.cholesky(inverse[block][:, block]))
