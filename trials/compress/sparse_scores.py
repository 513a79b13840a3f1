"""Which weights of a matrix stay: the lowest scores go, or SparseGPT removes them one column after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from search_spaces.compression import Sparsity
from trials.compress.matrices import Matrix
from trials.families.base import Family
from trials.families.lookup import family_of_student
from trials.losses.precision import autocast
from trials.prune.input_moments import BATCH_TOKENS, TOKENS
from trials.teacher.second_moments import second_moments

BLOCK = 16  # columns that share one choice of the mask; a multiple of 4. The paper has 128: docs/lab/sparsity.md
DAMPING = 0.01  # as a share of the mean of the Hessian's diagonal


def stays(scores: Tensor, gone: int, kind: str, by_row: bool = False) -> Tensor:
    """True for all weights but the ``gone`` ones with the lowest of ``scores`` (outputs, inputs).

    With ``kind`` "2:4" only the two lowest of four in a row can go. With ``by_row`` every output loses as many weights
    as the others, or one more.
    """
    if kind == "2:4":
        groups = scores.reshape(-1, 4)
        scores = groups.scatter(1, groups.topk(2).indices, torch.inf).reshape(scores.shape)
    rows = scores if by_row else scores.reshape(1, -1)
    each, more = divmod(gone, len(rows))
    counts = torch.full((len(rows), 1), each, device=rows.device)
    counts[:more] += 1  # the same rows for every ``gone``, so that no row gets weights back when it rises
    lowest = rows.topk(each + (more > 0), largest=False, sorted=by_row).indices
    stay = torch.arange(lowest.shape[1], device=rows.device) >= counts
    return torch.ones_like(rows, dtype=torch.bool).scatter(1, lowest, stay).reshape(scores.shape)


class Mask(nn.Module):
    """A parametrization of a weight that sets some of its elements to 0, for `torch.nn.utils.parametrize`.

    Its buffers are part of the model's state: ``mask`` in the layout of the stored weight, ``gone`` the number of
    weights that are 0, and with Wanda the root mean square ``scale`` (inputs,) of the inputs.
    """

    mask: Tensor
    gone: Tensor
    scale: Tensor | None

    def __init__(self, matrix: Matrix, sparsity: Sparsity) -> None:
        super().__init__()
        weight = matrix.weight.detach()
        self.inputs_first, self.sparsity = matrix.inputs_first, sparsity
        mask = torch.ones_like(weight.T if self.inputs_first else weight, dtype=torch.bool)
        self.register_buffer("mask", mask)
        self.register_buffer("gone", torch.zeros((), dtype=torch.int64, device=weight.device))
        scale = torch.ones_like(weight[0]) if sparsity.method == "wanda" else None
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the model computes with."""
        return weight * self.mask

    def scores(self, weight: Tensor) -> Tensor:
        """The scores of the weights (outputs, inputs): |W|, and with Wanda |W| times the scale of the inputs."""
        scores = self.turned(weight).abs()
        return scores if self.scale is None else scores * self.scale

    def turned(self, stored: Tensor) -> Tensor:
        """A stored matrix as (outputs, inputs), and the other way round."""
        return stored.T if self.inputs_first else stored

    def choose(self, weight: Tensor, gone: int) -> None:
        """Set the mask so that ``gone`` of the stored ``weight`` are 0."""
        chosen = stays(self.scores(weight), gone, self.sparsity.kind, by_row=self.scale is not None)
        self.mask.copy_(self.turned(chosen))
        self.gone.fill_(gone)

    def update(self, weight: Tensor, level: float) -> None:
        """Move to ``level`` for the stored ``weight``. What earlier steps set to 0 has the lowest score and stays 0."""
        self.choose(weight, round(level * weight.numel()))

    def after_step(self, weight: Tensor, state: dict[str, Any]) -> None:
        """Set masked elements of the stored ``weight`` to 0, whatever momentum and weight decay did to them."""
        weight.masked_fill_(~self.mask, 0)


@torch.no_grad()
def sparse_gpt(weight: Tensor, moments: Tensor, gone: int, kind: str) -> tuple[Tensor, Tensor]:
    """``weight`` (outputs, inputs) with ``gone`` zeros and the other weights updated, and the mask of those that stay.

    ``moments`` (inputs, inputs) are second moments of the inputs, in any unit. Columns are gone through from left to
    right. The error of a column is made up for by all later columns, in closed form from the Cholesky factor of the
    inverse Hessian. The mask is chosen for `BLOCK` columns at a time, or for four with ``kind`` "2:4" (SparseGPT, arXiv
    2301.00774, algorithm 1).
    """
    left, upper, width = weight.float().clone(), _inverse_factor(moments).float(), weight.shape[1]
    mask = torch.ones_like(left, dtype=torch.bool)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        part, stay, factor = left[:, start:end], mask[:, start:end], upper[start:end, start:end]
        scales, errors = factor.diagonal(), torch.zeros_like(part)
        if kind != "2:4":
            stay.copy_(stays((part / scales).square(), gone * end // width - gone * start // width, kind))
        for column in range(end - start):
            if kind == "2:4" and column % 4 == 0:
                four = slice(column, column + 4)
                stay[:, four] = stays((part[:, four] / scales[four]).square(), 2 * len(part), kind)
            errors[:, column] = torch.where(stay[:, column], 0, part[:, column] / scales[column])
            part[:, column:] -= torch.outer(errors[:, column], factor[column, column:])
        left[:, end:] -= errors @ upper[start:end, end:]
    return left.masked_fill_(~mask, 0).to(weight.dtype), mask


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of damped ``moments``, in float64."""
    hessian = moments.double()
    damping = (DAMPING * hessian.diagonal().mean()).clamp(min=1e-30)
    hessian = hessian + damping * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


@dataclass
class _Batch:
    """A batch on its way through the layers: its ``stream`` (n, T, H), and the other arguments of each layer."""

    stream: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def through(self, layer: nn.Module, place: int) -> Tensor:
        """The output of ``layer``, which is number ``place``."""
        further, options = self.arguments[place]
        with autocast(self.stream.device.type):
            output: Tensor = layer(self.stream, *further, **options)
        return output


@torch.no_grad()
def layer_inputs(
    model: PreTrainedModel, windows: Tensor, matrices: Sequence[Matrix], products: bool
) -> Iterator[tuple[Sequence[Matrix], Tensor]]:
    """Yields ``matrices`` with equal inputs, and the second moments of these inputs in float32, first layer first.

    They are (inputs, inputs), or with ``products`` False their diagonal (inputs,). They are measured on the first of
    ``windows`` (n, T) up to `TOKENS` tokens. All inputs of one layer are measured before its matrices are yielded. The
    next layer then reads what the layer gives with the matrices that the caller has changed.
    """
    family, tokens = family_of_student(model.config), windows[: max(1, TOKENS // windows.shape[1])]
    size = max(1, BATCH_TOKENS // tokens.shape[1])
    batches = [_traced(model, family, one.to(model.device)) for one in torch.split(tokens, size)]
    for place, layer in enumerate(family.layers(model)):
        groups = _groups(family, layer, matrices)
        found = [_Moments(products) for _ in groups]
        with ExitStack() as hooks:
            for one, each in zip(groups, found, strict=True):
                hooks.enter_context(one[0].module.register_forward_pre_hook(each.add))
            for batch in batches:
                batch.through(layer, place)
        for group, sums in zip(groups, found, strict=True):
            yield group, sums.total / tokens.numel()
        for batch in batches:
            batch.stream = batch.through(layer, place)


def _traced(model: PreTrainedModel, family: Family, tokens: Tensor) -> _Batch:
    """The batch of ``tokens`` (n, T) in front of the first layer."""
    streams: list[Tensor] = []
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not streams:
            streams.append(given[0])
        arguments.append((given[1:], options))

    with ExitStack() as hooks, autocast(model.device.type):
        for layer in family.layers(model):
            hooks.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        family.backbone(model, tokens)
    return _Batch(streams[0], arguments)


def _groups(family: Family, layer: nn.Module, matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """Those of ``matrices`` that are in ``layer``, with the readers of one norm together."""
    inside = {id(one) for one in layer.modules()}
    shared = {id(one): id(norm) for norm, readers in family.readers(layer) for one in readers}
    groups: dict[int, list[Matrix]] = {}
    for one in matrices:
        if id(one.module) in inside:
            groups.setdefault(shared.get(id(one.module), id(one.module)), []).append(one)
    return list(groups.values())


class _Moments:
    """Running sums of products of the inputs of one module, or of their squares alone, in float32."""

    def __init__(self, products: bool) -> None:
        self.products = products
        self.total: Tensor = torch.zeros(())

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the inputs (B, T, n) of the module."""
        rows = inputs[0].flatten(0, 1).float()
        with torch.autocast(rows.device.type, enabled=False):
            sums = second_moments(rows) if self.products else rows.square().sum(dim=0)
        self.total = self.total.to(sums.device) + sums
