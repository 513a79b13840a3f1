"""A residual stream turned to its principal components, so that a narrower one carries most of what it did."""

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
    """How streams (N, H) of a teacher become those (N, k) of its student.

    ``projection`` (k, H) takes what a layer reads. The final norm of the student has one weight for all channels;
    what the teacher's has beside that, ``gain`` (H,), is to be in the stream before it, ``centred`` for a LayerNorm.
    """

    projection: Tensor
    gain: Tensor
    centred: bool

    def turned(self, stream: Tensor) -> Tensor:
        """The student's stream where the teacher's is ``stream``, before any layer."""
        return stream @ self.projection.T

    def turned_last(self, stream: Tensor) -> Tensor:
        """The student's stream before the final norm."""
        if self.centred:
            stream = stream - stream.mean(dim=1, keepdim=True)
        return self.turned(stream * self.gain)


def rotation_to(model: PreTrainedModel, family: Family, directions: Tensor, width: int) -> Rotation:
    """To the span of the first of ``directions`` (H, H; columns, see `trials.teacher.streams.Streams`) of ``model``.

    A LayerNorm takes the mean of all channels away. The teacher's has been taken before the directions were found; so
    that the student's takes away nothing, its streams have mean 0: ``width`` - 1 directions, turned away from it.

    Any rotation within the span is the same model before training, but Adam scales its steps channel by channel. So
    of all it is the one that brings the student's channels nearest to the ``width`` of the teacher's that lie most in
    the span, in square distance: with S the rows of the identity at these, D (H, r) the directions and B (width, r) a
    basis of what the norm leaves, B R D^T with the orthogonal R nearest to B^T S D (Procrustes; Schoenemann 1966).
    For the whole width that is the identity, or for a LayerNorm what it takes the mean with.
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
    """The weights of ``model`` by name, its stream turned and narrowed by ``rotation``; tied weights once.

    What a norm multiplies by and adds goes into the matrices that read it, which then commute with a rotation of the
    stream (SliceGPT, arXiv 2401.15024, section 3.1), and what it multiplies by is taken out again for the new channels.
    One rotation serves the whole network, so that all shapes stay those of a stock model. The final norm has the head
    behind it, which may be tied to the embeddings: it keeps one weight for all channels, see `Rotation`.

    Raises InputError when a norm adds something and what reads it has no bias to take it over.
    """
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    projection, width = rotation.projection, len(rotation.projection)
    scale = math.sqrt(projection.shape[1] / width)  # a norm of fewer channels divides by the root of a smaller mean

    def put(parameter: Tensor, value: Tensor) -> None:
        state[names[id(parameter)]] = value.to(parameter.dtype)

    for layer in family.layers(model):
        for norm, readers in family.readers(layer):
            gains, bias = _gains(norm, projection), bias_of(norm)
            put(norm.get_parameter("weight"), scale * gains)
            if bias is not None:
                put(bias, bias.new_zeros(width))
            for reader in readers:
                for parameter, value in _reading(reader, norm, projection, gains):
                    put(parameter, value)
        for writer in (family.attention_output(layer), family.mlp_output(layer)):
            matrix, bias = matrix_of(writer), bias_of(writer)
            put(writer.get_parameter("weight"), _laid(writer, projection @ matrix.float()))
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
    """What the norm of a student multiplies by (k,): the root of the mean square gain of what each channel holds.

    Any would do, for what reads the norm is divided by it. With these its weights are as large as the teacher's, and
    channels that a norm holds down, those of massive activations above all, do not learn many times as fast.
    """
    gains = (projection.square() @ norm.get_parameter("weight").float().square()).sqrt()
    return torch.where(gains > 0, gains, 1)


def _reading(reader: nn.Module, norm: nn.Module, projection: Tensor, gains: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The parameters of ``reader`` with their values behind a norm that multiplies by ``gains`` and adds nothing."""
    matrix, bias, added = matrix_of(reader).float(), bias_of(reader), bias_of(norm)
    weight: Tensor = reader.get_parameter("weight")
    found = [(weight, _laid(reader, (matrix * norm.get_parameter("weight")) @ projection.T / gains))]
    if added is not None:
        if bias is None:
            problem = "model with norms that add something and a projection without a bias behind them"
            raise InputError(f"{problem}: its stream cannot be narrowed; take a space of full width, as --space depth")
        found.append((bias, bias.float() + matrix @ added.float()))
    return found


def _laid(module: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of `matrix_of`, in memory of its own."""
    return (matrix.T if isinstance(module, Conv1D) else matrix).contiguous()
