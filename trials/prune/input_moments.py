"""Second moments of what projections read, measured in the intact teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trials.families.base import Family, bias_of, matrix_of
from trials.losses.precision import autocast
from trials.prune.refit import shift_of
from trials.teacher.second_moments import second_moments

# At most. Half as many tokens gave worse students of mini, but not of SmolLM2: docs/lab/heads-and-neurons.md.
TOKENS = 65_536
MOMENT_BYTES = 4 * 2**30  # second moments held at a time; one pass over the text covers as many layers as fit
BATCH_TOKENS = 1_024  # in one forward pass; bounds memory


def input_moments(
    model: PreTrainedModel, family: Family, windows: Tensor, projections: Sequence[nn.Module]
) -> Iterator[Tensor]:
    """Yields the second moments (n, n) of the inputs of each of ``projections``, which all have n inputs.

    They are about the mean where the projection has a bias. They are measured in the intact teacher on the first
    windows of ``windows`` (N, T; token ids) up to `TOKENS` tokens, at least one window.
    """
    text = windows[: max(1, TOKENS // windows.shape[1])]
    at_once = max(1, MOMENT_BYTES // (4 * matrix_of(projections[0]).shape[1] ** 2))
    for start in range(0, len(projections), at_once):
        found = _measured(model, family, text, projections[start : start + at_once])[::-1]
        while found:
            yield found.pop()


@torch.no_grad()
def _measured(model: PreTrainedModel, family: Family, text: Tensor, projections: Sequence[nn.Module]) -> list[Tensor]:
    """The second moments for ``projections`` from one pass over ``text`` (N, T)."""
    sums = [_Sums(centred=bias_of(one) is not None) for one in projections]
    handles = [one.register_forward_pre_hook(each.add) for one, each in zip(projections, sums, strict=True)]
    batch = max(1, BATCH_TOKENS // text.shape[1])
    try:
        with autocast(model.device.type):
            for start in range(0, len(text), batch):
                family.backbone(model, text[start : start + batch].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return [each.moments(text.numel()) for each in sums]


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
