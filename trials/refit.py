"""Output projections fitted anew after pruning: what is left of a layer takes over what it can of what is gone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trials.families import Family, Kept
from trials.families.base import channels
from trials.moments import Moments

# Of the mean variance of the inputs that stay, on the diagonal. On two models 1e-4 was as good and 1e-1 was worse.
RIDGE = 1e-3


@torch.no_grad()
def refit(teacher: PreTrainedModel, student: PreTrainedModel, family: Family, kept: Kept, moments: Moments) -> None:
    """Fit the output projections of ``student``, which is ``teacher`` cut to what is ``kept``, by least squares.

    Both projections of every layer - of attention, which reads the heads, and of the MLP, which reads the neurons -
    give as nearly as they can, from the inputs that stay, what the teacher's give from all of theirs: see
    `fitted`. One after the other on the teacher's own ``moments``, that is, as if the rest of the student were
    exact. A projection that lost no input is left as it is.
    """
    head_dim = family.shape(teacher.config).head_dim
    for place, layer in enumerate(kept.layers.tolist()):
        old, new = family.layers(teacher)[layer], family.layers(student)[place]
        heads = channels(kept.heads[place], head_dim)
        sources = (
            (family.attention_output, heads, moments.heads_mean, moments.heads),
            (family.mlp_output, kept.mlp[place], moments.mlp_mean, moments.mlp),
        )
        for projection, inputs, means, seconds in sources:
            if len(inputs) < seconds.shape[-1]:
                mean, second = (torch.from_numpy(array[layer].copy()).to(teacher.device) for array in (means, seconds))
                _refit(projection(old), projection(new), inputs, kept.hidden, mean, second)


def fitted(
    weight: Tensor, bias: Tensor | None, mean: Tensor, second: Tensor, kept: Tensor, ridge: float = RIDGE
) -> tuple[Tensor, Tensor | None]:
    """The projection (W', b') from inputs x_kept that comes nearest to ``weight`` x + ``bias`` from all inputs x.

    ``weight`` (m, n), ``bias`` (m,) or None, ``mean`` E[x] (n,), ``second`` E[x x^T] (n, n), ``kept`` (k,) ascending;
    the result is float64, (m, k) and (m,) or None. With K kept and D dropped inputs it minimises

        E |W x + b - W' x_K - b'|^2 + lambda |W' - W_K|^2,   lambda = ridge * mean of the diagonal of C_KK,

        W' = W_K + W_D C_DK (C_KK + lambda I)^-1,   b' = b + (W - W') E[x]   (W' with zeros at D)

    where C is the covariance of x, or without a bias, which could take up the mean, E[x x^T]. The ridge draws to the
    slice, not to 0, so inputs that say nothing of the dropped ones keep their weights. Least squares on the layer's
    output is what SparseGPT (arXiv 2301.00774, section 3) and OBC (arXiv 2208.11580, section 4) solve for a mask;
    here whole inputs go, so that it is one solution for all outputs.
    """
    weight, mean, second = weight.double(), mean.double(), second.double()
    moment = second if bias is None else second - mean[:, None] * mean
    stays = torch.zeros(len(mean), dtype=torch.bool, device=kept.device)
    stays[kept] = True
    own, cross = moment[kept][:, kept], moment[~stays][:, kept]
    penalty = (ridge * own.diagonal().mean()).clamp(min=torch.finfo(own.dtype).tiny)
    own.diagonal().add_(penalty)
    gain = torch.cholesky_solve((weight[:, ~stays] @ cross).T, torch.linalg.cholesky(own)).T
    new = weight[:, kept] + gain
    if bias is None:
        return new, None
    return new, bias.double() + weight @ mean - new @ mean[kept]


def _refit(old: nn.Module, new: nn.Module, inputs: Tensor, outputs: Tensor, mean: Tensor, second: Tensor) -> None:
    bias, new_bias = (dict(projection.named_parameters()).get("bias") for projection in (old, new))
    weight, found = fitted(_matrix(old)[outputs], None if bias is None else bias[outputs], mean, second, inputs)
    _matrix(new).copy_(weight)
    if new_bias is not None and found is not None:
        new_bias.copy_(found)


def _matrix(projection: nn.Module) -> Tensor:
    """The weight of a projection as (outputs, inputs); a view, which may be written to."""
    weight = projection.get_parameter("weight")
    return weight.T if isinstance(projection, Conv1D) else weight
