"""Ranks MLP neurons for removal.

Removes one neuron of a layer at a time and always takes the one that the other neurons replace best.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from trials.families.base import Family, bias_of, matrix_of
from trials.losses.precision import autocast
from trials.prune.refit import RIDGE, shift_of
from trials.teacher.second_moments import second_moments

# At most. Half as many tokens gave worse students of mini, but not of SmolLM2: docs/lab/heads-and-neurons.md.
TOKENS = 65_536
BATCH_TOKENS = 1_024  # in one forward pass; bounds memory
MOMENT_BYTES = 4 * 2**30  # second moments held at a time; one pass over the text covers as many layers as fit
COMPACT = 8  # the matrices are shrunk to the remaining neurons at least this many times


def elimination_losses(model: PreTrainedModel, family: Family, windows: Tensor) -> NDArray[np.float32]:
    """For each MLP neuron, its layer's loss without it and without all neurons removed before it; (L, M).

    See `eliminated`. Second moments are measured in the intact teacher on the first windows of ``windows`` (n, T; token
    ids) up to `TOKENS` tokens, at least one window.
    """
    text = windows[: max(1, TOKENS // windows.shape[1])]
    outputs = [family.mlp_output(layer) for layer in family.layers(model)]
    weights = [matrix_of(one) for one in outputs]
    at_once = max(1, MOMENT_BYTES // (4 * weights[0].shape[1] ** 2))
    losses = []
    for start in range(0, len(outputs), at_once):
        some = range(start, min(start + at_once, len(outputs)))
        seconds = _moments(model, family, text, some)
        losses += [eliminated(seconds.pop(number), weights[number]).cpu().numpy() for number in some]
    return np.stack(losses)


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
    count, least = len(second), torch.finfo(torch.float32).tiny
    sizes = second.double().diagonal().clamp(min=least).sqrt()
    still = second.diagonal() < least
    even = (second.double() / torch.outer(sizes, sizes)).masked_fill(still | still[:, None], 0)
    inverse = _inverse(even, ridge).float()
    fitted = (weight.detach().double() * sizes).float()
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


@torch.no_grad()
def _moments(model: PreTrainedModel, family: Family, text: Tensor, layers: range) -> dict[int, Tensor]:
    """Second moments (M, M) of the inputs of the MLP output projections, by layer; centred where there is a bias."""
    outputs = {number: family.mlp_output(family.layers(model)[number]) for number in layers}
    sums = {number: _Sums(centred=bias_of(output) is not None) for number, output in outputs.items()}
    handles = [output.register_forward_pre_hook(sums[number].add) for number, output in outputs.items()]
    batch = max(1, BATCH_TOKENS // text.shape[1])
    try:
        with autocast(model.device.type):
            for start in range(0, len(text), batch):
                family.backbone(model, text[start : start + batch].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return {number: sums.pop(number).moments(text.numel()) for number in layers}


class _Sums:
    """Running sums of the inputs of one projection and of their products, in float32."""

    def __init__(self, centred: bool) -> None:
        self.centred = centred
        self.shift: Tensor | None = None
        self.products: Tensor | None = None
        self.rows: Tensor | None = None

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the inputs (B, T, M) of the projection. The first ones decide the shift of all."""
        rows = inputs[0].flatten(0, 1).float()
        if self.products is None and self.centred:
            self.shift = shift_of(rows)
        rows = rows if self.shift is None else rows - self.shift
        with torch.autocast(rows.device.type, enabled=False):
            products = second_moments(rows)
        self.products = products if self.products is None else self.products + products
        self.rows = rows.sum(dim=0) if self.rows is None else self.rows + rows.sum(dim=0)

    def moments(self, tokens: int) -> Tensor:
        """The second moments (M, M) of ``tokens`` inputs, about the mean if they are ``centred``."""
        assert self.products is not None
        assert self.rows is not None
        second, mean = self.products / tokens, self.rows / tokens
        return second - torch.outer(mean, mean) if self.centred else second
