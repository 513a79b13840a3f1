"""Parameter-free differentiable pruning (PDP, arXiv 2305.11203): training through soft masks of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from search_spaces.compression import Quantization, Sparsity
from trials.compress.matrices import Matrix
from trials.compress.quantize import rounded
from trials.compress.sparse_scores import Mask

NONE = Quantization()
SHARP_SHARE = 0.3  # of the improved soft mask that is its sharper part


def soft_mask(seen: Tensor, cut: Tensor, tau: float, beta: float) -> Tensor:
    """The soft mask of weights that the mask sees as ``seen``, for squared thresholds ``cut``; differentiable.

    It is m = exp(w^2 / tau) / (exp(w^2 / tau) + exp(t^2 / tau)) = sigmoid(x) with x = (w^2 - t^2) / tau. At the
    threshold t it is a half. With a positive ``beta`` it is the improved soft mask, 0.7 sigmoid(x) + 0.3
    (1 + tanh(beta x)) / 2: the second part is 2 beta times as sharp, so that it decides earlier which weights stay.
    """
    distance = (seen.square() - cut) / tau
    mask = torch.sigmoid(distance)
    if beta:
        mask = torch.lerp(mask, torch.sigmoid(2 * beta * distance), SHARP_SHARE)
    return mask


def squared_cut(magnitudes: Tensor, level: float, kind: str) -> Tensor:
    """The squared thresholds for ``magnitudes`` (outputs, inputs): a scalar, or (outputs, inputs) for "2:4".

    A threshold is midway between the magnitudes of the last weight that goes and the first that stays, when the share
    ``level`` goes. In "2:4" every four in a row have their own, which rises in proportion to the level. When no weight
    goes it is minus infinity, where soft masks are 1.
    """
    gone = round(level * magnitudes.numel())
    if not gone:
        return torch.full((), -torch.inf, device=magnitudes.device)
    if kind == "2:4":
        highest = magnitudes.reshape(-1, 4).topk(3).values
        middle = 2 * level * highest[:, 1:].mean(dim=1)
        cuts: Tensor = middle.square().repeat_interleave(4).reshape(magnitudes.shape)
        return cuts
    lowest = magnitudes.flatten().topk(gone + 1, largest=False, sorted=False).values
    return lowest.topk(2).values.mean().square()


class SoftMask(Mask):
    """PDP's parametrization: the model computes with w m(w), and gradients flow through m too.

    ``cut`` is a further buffer, the squared thresholds. With a ``quantization`` the mask sees the weights as they are
    after it (quantization-aware masking), and gradients pass it straight through. With ``mask_aware`` in ``sparsity``,
    gradients are scaled by the mask, and so are the optimizer's moments after every step: a weight on its way out does
    not follow old gradients. While ``hard`` is True the hard mask is used instead.
    """

    cut: Tensor

    def __init__(self, matrix: Matrix, sparsity: Sparsity, quantization: Quantization = NONE) -> None:
        super().__init__(matrix, sparsity)
        coded = quantization.scheme != "none" and matrix.part in quantization.matrices
        self.quantization, self.hard = quantization if coded else None, False
        shape = self.mask.shape if sparsity.kind == "2:4" else ()
        cut = torch.full(shape, -torch.inf, dtype=matrix.weight.dtype, device=matrix.weight.device)
        self.register_buffer("cut", cut)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the model computes with."""
        if self.hard:
            return super().forward(weight)
        soft = self.soft(weight)
        masked = weight * soft
        if self.sparsity.mask_aware:  # the same value, with the gradient times the mask
            return masked.detach() + soft.detach() * (masked - masked.detach())
        return masked

    def soft(self, weight: Tensor) -> Tensor:
        """The soft mask of the stored ``weight``."""
        return soft_mask(self.seen(weight), self.cut, self.sparsity.tau, self.sparsity.beta)

    def seen(self, weight: Tensor) -> Tensor:
        """The stored ``weight`` as the mask sees it."""
        if self.quantization is None:
            return weight
        plain = weight.detach()
        return weight + (self.turned(rounded(self.turned(plain), self.quantization)) - plain)

    def scores(self, weight: Tensor) -> Tensor:
        """The magnitudes that the mask sees (outputs, inputs). The weight's own decides between equal ones."""
        seen = super().scores(self.seen(weight))
        return seen if self.quantization is None else seen.double() + 1e-6 * super().scores(weight)

    def update(self, weight: Tensor, level: float) -> None:
        """Set the thresholds for ``level`` and the stored ``weight``."""
        magnitudes = self.turned(self.seen(weight)).abs()
        cut = squared_cut(magnitudes, level, self.sparsity.kind)
        self.cut.copy_(self.turned(cut) if cut.dim() else cut)
        self.gone.fill_(round(level * weight.numel()))

    def after_step(self, weight: Tensor, state: dict[str, Any]) -> None:
        """Scale the moments in the optimizer's ``state`` of the stored ``weight``, if that is asked for."""
        if self.hard:
            super().after_step(weight, state)
        if self.sparsity.mask_aware:
            mask = self.mask if self.hard else self.soft(weight)
            for one in state.values():
                if isinstance(one, Tensor) and one.shape == weight.shape:
                    one.mul_(mask)
