"""Which MLP neurons can go: one after another, each time the one that the others can best stand in for."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from trials.families.base import Family, bias_of, matrix_of
from trials.losses.precision import autocast
from trials.prune.refit import RIDGE
from trials.teacher.second_moments import second_moments

TOKENS = 65_536  # at most; half as many leave worse students of mini, not of SmolLM2: docs/results.md
BATCH_TOKENS = 1_024  # in one forward pass; bounds memory
MOMENT_BYTES = 4 * 2**30  # of second moments at a time: as many layers as fit are read in one pass, at least one
COMPACT = 8  # times at least that what is left is moved together while all go


def elimination_losses(model: PreTrainedModel, family: Family, windows: Tensor) -> NDArray[np.float32]:
    """For each MLP neuron, what its layer has lost when it has gone as well as all that go before it; (L, M).

    See `eliminated`; the second moments are those on ``windows`` (n, T), token ids, of which as many are read as make
    `TOKENS`, at least one, by the teacher as it is.
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
    """The loss when each of n inputs of a projection ``weight`` (m, n) has gone as well as those before it; (n,).

    ``second`` (n, n) are the second moments C of the inputs, about their mean where the projection has a bias. Of those
    that are left the input goes next without which the loss is least when the weights of all others are refitted,

        E |W x - V x|^2 + sum_i lambda_i |W_i - V_i|^2,   lambda_i = ridge * C_ii,   V_i = 0 for all that have gone,

    as `trials.prune.refit.fitted` does, but for the ridge, of which each input has its own share: where a few have nearly all
    of the mean square, one for all hides what the others are worth. Backward elimination by Optimal Brain Surgeon
    (Hassibi and Stork 1993): with P the inverse of C + diag(lambda) over what is left, input i costs |V_i|^2 / P_ii,
    the others take it over by V -= V_i P_i / P_ii, and P loses P_i P_i^T / P_ii; ZipLM (arXiv 2302.04089) removes
    neurons so. Losses increase in the order in which inputs go, so that of any number those with the highest stay.
    """
    count = len(second)
    sizes = second.double().diagonal().clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    even = second.double() / torch.outer(sizes, sizes) + ridge * torch.eye(
        count, dtype=torch.double, device=second.device
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(even)).float()
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
        inverse[out, out] = 1  # its row and column are 0 but for rounding, and it is never chosen again
    return losses.float()


@torch.no_grad()
def _moments(model: PreTrainedModel, family: Family, text: Tensor, layers: range) -> dict[int, Tensor]:
    """Of what the output projections of these ``layers`` read, by layer: (M, M), centred where there is a bias."""
    sums: dict[int, Tensor] = {}
    products: dict[int, Tensor] = {}

    def add(number: int, _: object, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, 1).float()
        with torch.autocast(rows.device.type, enabled=False):
            products[number] = products[number] + second_moments(rows) if number in products else second_moments(rows)
        sums[number] = sums[number] + rows.sum(dim=0) if number in sums else rows.sum(dim=0)

    outputs = {number: family.mlp_output(family.layers(model)[number]) for number in layers}
    handles = [one.register_forward_pre_hook(partial(add, number)) for number, one in outputs.items()]
    batch = max(1, BATCH_TOKENS // text.shape[1])
    try:
        with autocast(model.device.type):
            for start in range(0, len(text), batch):
                family.backbone(model, text[start : start + batch].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for number in layers:
        mean, second = sums[number] / text.numel(), products.pop(number) / text.numel()
        found[number] = second if bias_of(outputs[number]) is None else second - torch.outer(mean, mean)
    return found
