"""Refits the output projections of a pruned model by least squares, so that it replaces what was removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from trials.families.base import Family, bias_of, matrix_of
from trials.losses.precision import autocast
from trials.prune.rotate import Rotation
from trials.teacher.second_moments import second_moments
from trials.teacher.streams import Streams

RIDGE = 0.1  # as a share of the mean variance of a projection's inputs; docs/lab/refit.md
FLAT = 1_000  # times its variance is the squared mean of an input that hardly varies
FIRST_ROWS = 1_024  # decide which inputs hardly vary


@torch.no_grad()
def refit(
    student: PreTrainedModel,
    family: Family,
    kept: Sequence[int],
    streams: Streams,
    rotation: Rotation | None = None,
    ridge: float = RIDGE,
) -> None:
    """Change the output projections of ``student`` in place, so that its residual stream comes close to the teacher's.

    The student's layers are the teacher's number ``kept``. Its stream is the teacher's, rotated by ``rotation`` if
    given. ``streams`` hold the teacher's stream on calibration text.

    The refit goes from the first layer to the last, first the attention output, then the MLP output. Each projection is
    fitted by least squares (see `fitted`, also for ``ridge``), so that the student's stream after it is as close as
    possible to the teacher's stream at the same place. It thus corrects the losses of its own layer and the remaining
    error of all layers before. If the layers that followed in the teacher were removed, the MLP's target is the
    teacher's stream after those, so that it replaces them too. All of this happens in one forward pass of the student:
    each projection is fitted when its inputs arrive.

    Least squares of a pruned layer against the full one is the reconstruction of channel pruning (He et al., arXiv
    1707.06168) and SparseGPT (arXiv 2301.00774). With the pruned model's inputs and the full model's outputs, layer
    after layer, it is the asymmetric reconstruction of Zhang et al. (arXiv 1505.06798). Here the target is the stream
    instead of the layer's output, so that it includes what the residual connection carries past the layer.
    """
    wanted = _Wanted(streams, rotation)
    handles: list[RemovableHandle] = []
    try:
        for layer, number, following in zip(
            family.layers(student), kept, [*kept[1:], len(streams.inputs) - 1], strict=True
        ):
            targets = partial(wanted.after_attention, number), partial(wanted.before, following)
            handles += _hooks(layer, family, *targets, ridge)
        with autocast(student.device.type):
            family.backbone(student, streams.windows.to(student.device))
    finally:
        for handle in handles:
            handle.remove()


def fitted(
    inputs: Tensor, wanted: Tensor, weight: Tensor, biased: bool, ridge: float = RIDGE
) -> tuple[Tensor, Tensor | None]:
    """A weight (m, n) near ``weight`` W that maps ``inputs`` x (N, n) to ``wanted`` (N, m), and its bias (m,) or None.

    Returns W + D with the minimum of E |wanted - (W + D) x|^2 + lambda |D|^2, lambda = ridge * mean diagonal of C:

        D = (E[wanted x^T] - W C) (C + lambda I)^-1,   C = E[x x^T],   no bias.

    If ``biased``, x and ``wanted`` are centred, and the bias is E[wanted] - (W + D) E[x]. Moments are summed in the
    dtype of ``inputs``, after `shift_of` is subtracted; everything else is float64.
    """
    shift = shift_of(inputs) if biased else None
    inputs = inputs if shift is None else inputs - shift
    mean, offset, weight = inputs.mean(dim=0).double(), wanted.mean(dim=0), weight.double()
    second = second_moments(inputs).double() / len(inputs)
    if biased:
        second -= torch.outer(mean, mean)
        wanted = wanted - offset
    missing = (wanted.T @ inputs).double() / len(inputs) - weight @ second
    penalty = (ridge * second.diagonal().mean()).clamp(min=torch.finfo(second.dtype).tiny)
    second.diagonal().add_(penalty)
    weight = weight + torch.cholesky_solve(missing.T, torch.linalg.cholesky(second)).T
    mean = mean if shift is None else mean + shift
    return weight, offset - weight @ mean if biased else None


def shift_of(rows: Tensor) -> Tensor | None:
    """What to subtract from inputs ``rows`` (N, n) before moments about their mean are summed; (n,), or None for 0.

    A second moment about the mean is the difference of the mean square and the squared mean. Their float32 sums hide
    the variance of an input that hardly varies about a mean far from 0, and the second moments then have no Cholesky
    factor. So the shift of such an input is its median over the first rows. A median is a value of the input itself, so
    nothing is left of a constant one. The shift of all others is 0, which leaves their sums as they are, to the bit.
    """
    first = rows[:FIRST_ROWS]
    variance, mean = torch.var_mean(first.double(), dim=0, correction=0)
    flat = mean.square() > FLAT * variance
    return torch.where(flat, first.median(dim=0).values, 0) if flat.any() else None


@dataclass(frozen=True, eq=False)
class _Wanted:
    """The target for the student's stream (N, k), from the teacher's stream at the same place."""

    streams: Streams
    rotation: Rotation | None

    def after_attention(self, layer: int, device: torch.device) -> Tensor:
        """After the attention of the teacher's ``layer``."""
        stream = self.streams.after_attention(layer, device)
        return stream if self.rotation is None else self.rotation.turned(stream)

    def before(self, layer: int, device: torch.device) -> Tensor:
        """Before the teacher's ``layer``; for layer L, before the final norm."""
        stream = self.streams.before(layer, device)
        if self.rotation is None:
            return stream
        last = layer == len(self.streams.inputs) - 1
        return self.rotation.turned_last(stream) if last else self.rotation.turned(stream)


def _hooks(
    layer: nn.Module,
    family: Family,
    after_attention: Callable[[torch.device], Tensor],
    after_layer: Callable[[torch.device], Tensor],
    ridge: float,
) -> list[RemovableHandle]:
    """Hooks that fit the projections of ``layer`` during a forward pass of the student.

    ``after_attention`` and ``after_layer`` give the wanted streams. The output of a layer is its input plus the outputs
    of attention and MLP. This also holds for parallel layers, where both read the layer's input.
    """
    stream = torch.empty(0)

    def begin(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal stream
        stream = inputs[0].flatten(0, 1).float()

    def fit(target: Callable[[torch.device], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(projection: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            with torch.autocast(stream.device.type, enabled=False):
                fit_projection(projection, inputs[0].flatten(0, 1).float(), target(stream.device) - stream, ridge)

        return before

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal stream
        stream = stream + output.flatten(0, 1)

    attention, mlp = family.attention_output(layer), family.mlp_output(layer)
    return [
        layer.register_forward_pre_hook(begin),
        attention.register_forward_pre_hook(fit(after_attention)),
        attention.register_forward_hook(add),
        mlp.register_forward_pre_hook(fit(after_layer)),
    ]


def fit_projection(projection: nn.Module, inputs: Tensor, wanted: Tensor, ridge: float) -> None:
    """Change ``projection`` in place, so that it maps ``inputs`` (N, n) to ``wanted`` (N, m); see `fitted`."""
    matrix, bias = matrix_of(projection), bias_of(projection)
    fresh, shift = fitted(inputs, wanted, matrix, bias is not None, ridge)
    matrix.copy_(fresh)
    if bias is not None and shift is not None:
        bias.copy_(shift)
