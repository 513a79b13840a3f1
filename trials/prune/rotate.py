"""Rotates the residual stream to its principal components, so that a narrower stream keeps most of its content."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from search_spaces.errors import InputError
from trials.families.base import Family, bias_of, centres, matrix_of


@dataclass(frozen=True, eq=False)
class Rotation:
    """The map from streams (N, H) of a teacher to streams (N, k) of its student.

    ``projection`` (k, H) maps the stream before any layer. The student's final norm has one weight for all channels.
    The teacher's weights relative to their mean, ``gain`` (H,), are therefore applied to the stream before that norm.
    ``centred`` says that the norm is a LayerNorm, which subtracts the mean of the channels.
    """

    projection: Tensor
    gain: Tensor
    centred: bool

    def turned(self, stream: Tensor) -> Tensor:
        """The student's stream (N, k) for a teacher's ``stream`` (N, H), before any layer."""
        return stream @ self.projection.T

    def turned_last(self, stream: Tensor) -> Tensor:
        """The student's stream (N, k) for a teacher's ``stream`` (N, H), before the final norm."""
        if self.centred:
            stream = stream - stream.mean(dim=1, keepdim=True)
        return self.turned(stream * self.gain)


def rotation_to(model: PreTrainedModel, family: Family, directions: Tensor, width: int) -> Rotation:
    """The rotation of ``model`` to a stream of ``width`` channels, along the first of ``directions``.

    ``directions`` (H, H) are columns, strongest first; see `trials.teacher.streams.Streams`.

    A LayerNorm subtracts the mean of all channels. The directions were computed from centred streams. The student's
    streams must have mean 0 too, so that its LayerNorm subtracts nothing. They therefore use ``width`` - 1 directions,
    orthogonal to the mean.

    All rotations within the span give the same model before training. They train differently, because Adam scales its
    steps channel by channel. Chosen is the rotation whose channels are closest, in squared distance, to the ``width``
    channels of the teacher that lie most in the span. With S the rows of the identity at these channels, D (H, r) the
    directions and B (width, r) a basis of the space orthogonal to the mean (of the whole space for an RMSNorm), it is
    B R D^T, where R is the orthogonal matrix nearest to B^T S D (Procrustes; Schoenemann 1966). For ``width`` = H it is
    the identity, or for a LayerNorm the projection that subtracts the mean.
    """
    norm = family.norms(model)[-1]
    weight, centred = norm.get_parameter("weight").float(), centres(norm)
    basis = torch.eye(width, dtype=torch.float64, device=weight.device)
    if centred:
        mean = basis.new_ones(width, 1)
        basis = torch.linalg.qr(torch.cat([mean, basis[:, 1:]], dim=1)).Q[:, 1:]
    kept = directions[:, : basis.shape[1]].to(basis)
    channels = torch.argsort(kept.square().sum(dim=1), descending=True, stable=True)[:width].sort().values
    left, _, right = torch.linalg.svd(basis.T @ kept[channels])
    return Rotation((basis @ left @ right @ kept.T).float(), weight / weight.mean(), centred)


@torch.no_grad()
def rotated(model: PreTrainedModel, family: Family, rotation: Rotation) -> dict[str, Tensor]:
    """The weights of ``model`` by name, with its stream rotated and narrowed by ``rotation``; tied weights once.

    The weight and bias of each norm are folded into the matrices that read its output. The norm then commutes with a
    rotation of the stream (SliceGPT, arXiv 2401.15024, section 3.1). Afterwards the norms get new weights for the
    rotated channels (see `_gains`), which are divided out of the readers. One rotation serves the whole network, so
    that all shapes remain those of a stock model. The weights of the final norm cannot be folded into the head, which
    may be tied to the embeddings. It keeps one weight for all channels; see `Rotation`.

    Raises InputError when a norm has a bias and a projection that reads it has none.
    """
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    projection, width = rotation.projection, len(rotation.projection)
    scale = math.sqrt(projection.shape[1] / width)  # makes up for the norm's mean over fewer channels

    def put(parameter: Tensor, value: Tensor) -> None:
        state[names[id(parameter)]] = value.to(parameter.dtype)

    for layer in family.layers(model):
        for norm, readers in family.readers(layer):
            gains, bias = _gains(norm, projection), bias_of(norm)
            put(norm.get_parameter("weight"), scale * gains)
            if bias is not None:
                put(bias, bias.new_zeros(width))
            for reader in readers:
                for parameter, value in _reader_values(reader, norm, projection, gains):
                    put(parameter, value)
        for writer in (family.attention_output(layer), family.mlp_output(layer)):
            matrix, bias = matrix_of(writer), bias_of(writer)
            put(writer.get_parameter("weight"), _as_stored(writer, projection @ matrix.float()))
            if bias is not None:
                put(bias, projection @ bias.float())
    last = family.norms(model)[-1]
    gain, bias = last.get_parameter("weight"), bias_of(last)
    put(gain, gain.new_full((width,), scale * float(gain.float().mean())))
    if bias is not None:
        put(bias, projection @ bias.float())
    embeddings: list[Tensor] = [module.get_parameter("weight") for module in family.embeddings(model)]
    head = family.output_weight(model)
    for weight in embeddings if any(head is one for one in embeddings) else (*embeddings, head):
        put(weight, weight.float() @ projection.T)
    return state


def _gains(norm: nn.Module, projection: Tensor) -> Tensor:
    """The weights (k,) of a student's norm: the root mean square of the teacher's weights over each rotated channel.

    Any weights give the same model before training, because the readers of the norm are divided by them. These keep the
    readers' weights as large as the teacher's. Otherwise channels with small norm weights, such as those of massive
    activations, would learn many times too fast.
    """
    gains = (projection.square() @ norm.get_parameter("weight").float().square()).sqrt()
    return torch.where(gains > 0, gains, 1)


def _reader_values(
    reader: nn.Module, norm: nn.Module, projection: Tensor, gains: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The parameters of ``reader``, each with its new value after a norm with weights ``gains`` and no bias."""
    matrix, bias, added = matrix_of(reader).float(), bias_of(reader), bias_of(norm)
    weight: Tensor = reader.get_parameter("weight")
    found = [(weight, _as_stored(reader, (matrix * norm.get_parameter("weight")) @ projection.T / gains))]
    if added is not None:
        if bias is None:
            problem = "model whose norms have a bias and are read by a projection without a bias"
            raise InputError(f"{problem}: its stream cannot be narrowed; use a space of full width, as --space depth")
        found.append((bias, bias.float() + matrix @ added.float()))
    return found


def _as_stored(module: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of `matrix_of`, as a contiguous tensor."""
    return (matrix.T if isinstance(module, Conv1D) else matrix).contiguous()
