"""Ranks MLP neurons for removal.

Removes one neuron of a layer at a time and always takes the one that the other neurons replace best.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from trials.families.base import Family, matrix_of
from trials.prune.input_moments import input_moments
from trials.prune.refit import RIDGE
from trials.storage.progress import counted

COMPACT = 8  # the matrices are shrunk to the remaining neurons at least this many times


def elimination_losses(model: PreTrainedModel, family: Family, windows: Tensor) -> NDArray[np.float32]:
    """For each MLP neuron, its layer's loss without it and without all neurons removed before it; (L, M).

    See `eliminated`, and `trials.prune.input_moments` for what is measured on ``windows`` (n, T; token ids).
    """
    outputs = [family.mlp_output(layer) for layer in family.layers(model)]
    seconds = input_moments(model, family, windows, outputs)
    found = map(eliminated, seconds, map(matrix_of, outputs))
    layers = counted(found, len(outputs), "neurons are ranked, layers")
    return np.stack([losses.cpu().numpy() for losses in layers])


@torch.no_grad()
def eliminated(second: Tensor, weight: Tensor, ridge: float = RIDGE) -> Tensor:
    """For each of n inputs of a projection, the loss without it and without all inputs removed before it; (n,).

    ``weight`` W (m, n) is the projection's weight.
    ``second`` C (n, n) holds the second moments of the inputs x, about their mean if the projection has a bias. The
    loss of a refitted weight V is

        E |W x - V x|^2 + sum_i lambda_i |W_i - V_i|^2,   lambda_i = ridge * C_ii,   V_i = 0 for removed inputs i.

    The next input to go is the one whose removal gives the lowest loss, when the weights of all others are refitted.
    `trials.prune.refit.fitted` solves the same problem with one lambda for all inputs. Here each input has its own,
    because a few inputs may have nearly all of the mean square, and a common lambda would then hide the others.
    An input whose C_ii is 0 or less, by rounding, says nothing and costs nothing.

    The method is backward elimination by Optimal Brain Surgeon (Hassibi and Stork 1993), as ZipLM (arXiv 2302.04089)
    uses it for neurons. With P the inverse of C + diag(lambda) over the remaining inputs, removing input i costs
    |V_i|^2 / P_ii. Then V -= V_i P_i / P_ii and P -= P_i P_i^T / P_ii.

    Losses strictly increase in the order of removal, so that a student of any size keeps the inputs with the highest
    losses.
    """
    count = len(second)
    inverse, fitted = (one.float() for one in scaled_problem(second, weight, ridge))
    left, gone = torch.arange(count, device=second.device), torch.zeros(count, dtype=torch.bool, device=second.device)
    losses, loss = torch.empty(count, dtype=torch.float64), 0.0
    for step in range(count):
        if step and step % max(1, count // COMPACT) == 0:
            stay = ~gone
            left, inverse, fitted, gone = left[stay], inverse[stay][:, stay], fitted[:, stay], gone[stay]
        costs = (fitted.square().sum(dim=0) / inverse.diagonal()).masked_fill(gone, torch.inf)
        out = int(costs.argmin())
        loss = max(loss + float(costs[out]), float(np.nextafter(np.float32(loss), np.float32(np.inf))))
        losses[int(left[out])] = loss
        row = inverse[out].clone()
        share = row / row[out]
        fitted.addr_(fitted[:, out].clone(), share, alpha=-1)
        inverse.addr_(row, share, alpha=-1)
        gone[out] = True
        inverse[out, out] = 1  # avoids a division by about 0; the input is masked and never chosen again
    return losses.float()


def scaled_problem(second: Tensor, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """P and V of `eliminated` before anything is removed, for inputs scaled to a mean square of 1; float64."""
    least = torch.finfo(torch.float32).tiny
    sizes = second.double().diagonal().clamp(min=least).sqrt()
    still = second.diagonal() < least
    even = (second.double() / torch.outer(sizes, sizes)).masked_fill(still | still[:, None], 0)
    return _inverse(even, ridge), weight.detach().double() * sizes


def _inverse(even: Tensor, ridge: float) -> Tensor:
    """The inverse of ``even`` (n, n), second moments of inputs of size 1, with ``ridge`` added to the diagonal.

    Rounding may have left the sum without a Cholesky factor. Then the moments are limited to [-1, 1] and the
    eigenvalues of the sum to ``ridge`` at least, as if nothing had been rounded.
    """
    eye = torch.eye(len(even), dtype=even.dtype, device=even.device)
    factor, failed = torch.linalg.cholesky_ex(even + ridge * eye)
    if not failed:
        return torch.cholesky_inverse(factor)
    values, vectors = torch.linalg.eigh(even.clamp(-1, 1) + ridge * eye)
    inverse: Tensor = (vectors / values.clamp(min=ridge)) @ vectors.T
    return inverse
