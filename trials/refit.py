"""Output projections fitted anew after pruning: what is left of a model takes over what it can of what is gone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trials.families import Family, Kept
from trials.precision import autocast
from trials.streams import Streams

RIDGE = 0.1  # of the mean variance of a projection's inputs, on the diagonal; docs/results.md
STRIP = 256  # columns of second moments computed at a time


@torch.no_grad()
def refit(student: PreTrainedModel, family: Family, kept: Kept, streams: Streams) -> None:
    """Bring the residual stream of ``student``, cut to what is ``kept``, back to its teacher's, layer by layer.

    From the first layer to the last, each output projection - of attention, then of the MLP - is changed by least
    squares (see `fitted`) so that the student's stream behind it comes as near as it can to the teacher's at the same
    place, on calibration text: what is missing there is what the layer itself has lost and all that the layers before
    left over. Behind the MLP of a layer whose successors were dropped, the place is the one behind those, so that it
    stands in for them too. All of it happens in one forward pass of the student, in which each projection is fitted
    when its inputs arrive.

    Least squares of a cut layer against the whole one is the reconstruction of channel pruning (He et al., arXiv
    1707.06168) and SparseGPT (arXiv 2301.00774); with the inputs of the cut model and the outputs of the whole one,
    layer after layer, it is the asymmetric reconstruction of Zhang et al. (arXiv 1505.06798). Here the target is the
    stream and not the layer's own output, so that it also holds what a residual network carries past a layer.
    """
    layers, numbers = family.layers(student), kept.layers.tolist()
    handles: list[RemovableHandle] = []
    try:
        for layer, number, following in zip(layers, numbers, [*numbers[1:], len(streams.inputs) - 1], strict=True):
            handles += _watch(layer, family, kept.hidden, streams, number, following)
        with autocast(student.device.type):
            family.backbone(student, streams.windows.to(student.device))
    finally:
        for handle in handles:
            handle.remove()


def fitted(
    inputs: Tensor, wanted: Tensor, weight: Tensor, biased: bool, ridge: float = RIDGE
) -> tuple[Tensor, Tensor | None]:
    """A projection (m, n), near to ``weight``, that gives ``wanted`` (N, m) from ``inputs`` (N, n); its bias (m,).

    W + D with the minimum of E |wanted - (W + D) x|^2 + lambda |D|^2, lambda = ridge * mean of the diagonal of C:

        D = (E[wanted x^T] - W C) (C + lambda I)^-1,   C = E[x x^T],   no bias,

    or if ``biased`` the same with x and ``wanted`` centred, and the bias E[wanted] - (W + D) E[x]. Moments are summed
    in the format of ``inputs``, the rest is float64.
    """
    mean, offset, weight = inputs.mean(dim=0).double(), wanted.mean(dim=0), weight.double()
    second = second_moments(inputs).double() / len(inputs)
    if biased:
        second -= torch.outer(mean, mean)
        wanted = wanted - offset
    missing = (wanted.T @ inputs).double() / len(inputs) - weight @ second
    penalty = (ridge * second.diagonal().mean()).clamp(min=torch.finfo(second.dtype).tiny)
    second.diagonal().add_(penalty)
    weight = weight + torch.cholesky_solve(missing.T, torch.linalg.cholesky(second)).T
    return weight, offset - weight @ mean if biased else None


def second_moments(inputs: Tensor) -> Tensor:
    """The sums of products (n, n) of the columns of ``inputs`` (N, n); those that are equal are computed once."""
    sums = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
    for start in range(0, inputs.shape[1], STRIP):
        sums[start:, start : start + STRIP] = inputs[:, start:].T @ inputs[:, start : start + STRIP]
    return sums.tril() + sums.tril(-1).T


def moments_count(width: int) -> int:
    """How many sums `second_moments` computes for ``width`` columns."""
    return sum((width - start) * min(STRIP, width - start) for start in range(0, width, STRIP))


def _watch(
    layer: nn.Module, family: Family, hidden: Tensor, streams: Streams, number: int, following: int
) -> list[RemovableHandle]:
    """While these hooks are there, a pass of the student fits the projections of ``layer``.

    It is the teacher's ``number``; the one that is kept after it is ``following``. Its stream is what it reads, plus
    what its attention adds, plus what its MLP adds, also where both read the same.
    """
    stream = torch.empty(0)

    def begin(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal stream
        stream = inputs[0].flatten(0, 1).float()

    def fit(target: Callable[[int], Tensor], place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(projection: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            wanted = target(place).to(stream.device)[:, hidden] - stream
            with torch.autocast(stream.device.type, enabled=False):
                _fit(projection, inputs[0].flatten(0, 1).float(), wanted)

        return before

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal stream
        stream = stream + output.flatten(0, 1)

    attention, mlp = family.attention_output(layer), family.mlp_output(layer)
    return [
        layer.register_forward_pre_hook(begin),
        attention.register_forward_pre_hook(fit(streams.after_attention, number)),
        attention.register_forward_hook(add),
        mlp.register_forward_pre_hook(fit(streams.before, following)),
    ]


def _fit(projection: nn.Module, inputs: Tensor, wanted: Tensor) -> None:
    """Change ``projection`` so that from ``inputs`` it gives what is ``wanted``, as nearly as it can."""
    weight = projection.get_parameter("weight")
    matrix = weight.T if isinstance(projection, Conv1D) else weight  # (outputs, inputs), a view that can be written to
    bias = dict(projection.named_parameters()).get("bias")
    fresh, shift = fitted(inputs, wanted, matrix, bias is not None)
    matrix.copy_(fresh)
    if bias is not None and shift is not None:
        bias.copy_(shift)
