"""Output projections fitted anew after pruning: what is left of a model takes over what it can of what is gone."""

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

RIDGE = 0.1  # of the mean variance of a projection's inputs, on the diagonal; docs/results.md


@torch.no_grad()
def refit(
    student: PreTrainedModel,
    family: Family,
    kept: Sequence[int],
    streams: Streams,
    rotation: Rotation | None = None,
    ridge: float = RIDGE,
) -> None:
    """Bring the residual stream of ``student`` back to its teacher's, layer by layer.

    Its layers are the teacher's number ``kept``, its stream is the teacher's turned by ``rotation``, if there is one.

    From the first layer to the last, each output projection - of attention, then of the MLP - is changed by least
    squares (see `fitted`, also for ``ridge``) so that the student's stream behind it comes as near as it can to the
    teacher's at the same place, on calibration text: what is missing there is what the layer itself has lost and all
    that the layers before left over. Behind the MLP of a layer whose successors were dropped, the place is the one
    behind those, so that it stands in for them too. All of it happens in one forward pass of the student, in which each
    projection is fitted when its inputs arrive.

    Least squares of a cut layer against the whole one is the reconstruction of channel pruning (He et al., arXiv
    1707.06168) and SparseGPT (arXiv 2301.00774); with the inputs of the cut model and the outputs of the whole one,
    layer after layer, it is the asymmetric reconstruction of Zhang et al. (arXiv 1505.06798). Here the target is the
    stream and not the layer's own output, so that it also holds what a residual network carries past a layer.
    """
    wanted = _Wanted(streams, rotation)
    handles: list[RemovableHandle] = []
    try:
        for layer, number, following in zip(
            family.layers(student), kept, [*kept[1:], len(streams.inputs) - 1], strict=True
        ):
            handles += _watch(layer, family, partial(wanted.attended, number), partial(wanted.read, following), ridge)
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


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What the student's stream (N, k) is to be at the places of its teacher's."""

    streams: Streams
    rotation: Rotation | None

    def attended(self, layer: int, device: torch.device) -> Tensor:
        """When the attention of ``layer`` has added its part."""
        stream = self.streams.after_attention(layer, device)
        return stream if self.rotation is None else self.rotation.turned(stream)

    def read(self, layer: int, device: torch.device) -> Tensor:
        """Where ``layer`` reads it, or behind the last one the final norm."""
        stream = self.streams.before(layer, device)
        if self.rotation is None:
            return stream
        last = layer == len(self.streams.inputs) - 1
        return self.rotation.turned_last(stream) if last else self.rotation.turned(stream)


def _watch(
    layer: nn.Module,
    family: Family,
    attended: Callable[[torch.device], Tensor],
    done: Callable[[torch.device], Tensor],
    ridge: float,
) -> list[RemovableHandle]:
    """While these hooks are there, a pass of the student fits the projections of ``layer``.

    The stream is to be ``attended`` when its attention has added its part, and ``done`` behind it. It is what it reads,
    plus what its attention adds, plus what its MLP adds, also where both read the same.
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
        attention.register_forward_pre_hook(fit(attended)),
        attention.register_forward_hook(add),
        mlp.register_forward_pre_hook(fit(done)),
    ]


def fit_projection(projection: nn.Module, inputs: Tensor, wanted: Tensor, ridge: float) -> None:
    """Change ``projection`` so that from ``inputs`` (N, n) it gives what is ``wanted`` (N, m), see `fitted`."""
    matrix, bias = matrix_of(projection), bias_of(projection)
    fresh, shift = fitted(inputs, wanted, matrix, bias is not None, ridge)
    matrix.copy_(fresh)
    if bias is not None and shift is not None:
        bias.copy_(shift)
