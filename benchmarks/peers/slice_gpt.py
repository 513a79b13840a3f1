"""SliceGPT (arXiv 2401.15024): the stream of every block is rotated to its principal components, and the last ones go.

For models with RMSNorm. An RMSNorm without weights commutes with a rotation of the stream. So the weights of the norms
are folded into the projections behind them (section 3.1). Every block, attention or MLP, then has a rotation of its
own. Between two of them the residual connection needs an adapter matrix, which is no longer orthogonal once directions
are cut (section 3.2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from search_spaces.shape import ModelShape
from trials.families.base import Family, Kept, bias_of, matrix_of
from trials.families.lookup import family_of
from trials.families.shapes import settings_of, shape_of
from trials.prune.prune import student_from
from trials.teacher.second_moments import second_moments


class SlicedLayer(nn.Module):
    """A Llama-style layer with an adapter in each of its two residual connections."""

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        self.attention_adapter = nn.Linear(width, width, bias=False)
        self.mlp_adapter = nn.Linear(width, width, bias=False)

    def forward(self, stream: Tensor, **options: Any) -> Tensor:
        """The stream (B, T, width) behind the layer; ``options`` are those of transformers' own layer."""
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(stream), **options)
        stream = self.attention_adapter(stream) + attention
        mlp: Tensor = self.mlp(self.post_attention_layernorm(stream))
        adapted: Tensor = self.mlp_adapter(stream)
        return adapted + mlp


def sliced_parameters(shape: ModelShape, width: int) -> int:
    """Non-embedding parameters of a teacher whose stream has ``width`` directions, with all adapters."""
    return shape.non_embedding_parameters(replace(shape.full, hidden=width)) + 2 * shape.layers * width**2


@torch.no_grad()
def slice_gpt(teacher: PreTrainedModel, windows: Tensor, width: int) -> PreTrainedModel:
    """``teacher`` with ``width`` directions of its stream, chosen on ``windows`` (n, T) of token ids, in float32.

    Input and output embeddings are rotated differently, so they are no longer tied.

    All blocks are sliced in one forward pass of the student, each when its inputs arrive. The rotation of a block is
    thus computed from what the sliced blocks in front of it give.
    """
    family = family_of(teacher.config)
    student = _with_adapters(teacher, family, width)
    slicer = _Slicer(teacher, student, family, windows, width)
    handles = [handle for block in slicer.blocks() for handle in slicer.hooks(block)]
    try:
        family.backbone(student, windows.to(student.device))
    finally:
        for handle in handles:
            handle.remove()
    slicer.finish()
    return student


def _with_adapters(teacher: PreTrainedModel, family: Family, width: int) -> PreTrainedModel:
    """A student of the right sizes. Its output embedding is its own. The projections do not fit together yet."""
    shape, config = shape_of(teacher.config), copy.deepcopy(teacher.config)
    config.tie_word_embeddings = False
    layers, hidden, heads, kv_heads, mlp = (
        torch.arange(size, device=teacher.device)
        for size in (shape.layers, width, shape.heads, shape.kv_heads, shape.mlp)
    )
    state = family.cut(teacher, Kept(layers, hidden, *((one,) * shape.layers for one in (heads, kv_heads, mlp))))
    state["lm_head.weight"] = family.output_weight(teacher)[:, :width].clone()
    settings = settings_of(config, range(shape.layers))
    student = student_from(config, replace(shape.full, hidden=width), state, settings).float()
    for number, layer in enumerate(family.layers(student)):
        student.model.layers[number] = SlicedLayer(layer, width).to(student.device)
    for norm in family.norms(student):  # means are over fewer channels; SliceGPT divides by the teacher's width
        norm.get_parameter("weight").fill_(math.sqrt(shape.hidden / width))
        norm.variance_epsilon = float(norm.variance_epsilon) * shape.hidden / width  # type: ignore[arg-type,assignment]
    return student


@dataclass(frozen=True, eq=False)
class _Block:
    """An attention or MLP. ``readers`` and ``writer`` are pairs of the teacher's projection and the student's.

    ``gain`` (H,) is the weight of the teacher's norm. ``norm`` is the student's.
    """

    gain: Tensor
    norm: nn.Module
    readers: Sequence[tuple[nn.Module, nn.Module]]
    writer: tuple[nn.Module, nn.Module]
    adapter: nn.Module


class _Slicer:
    """Sets the weights of ``student`` while it reads the calibration text.

    ``basis`` (H, width) has the directions of the present block as columns. ``stream`` (N, width) is its input.
    """

    def __init__(
        self, teacher: PreTrainedModel, student: PreTrainedModel, family: Family, windows: Tensor, width: int
    ) -> None:
        self.teacher, self.student, self.family, self.width = teacher, student, family, width
        embedding = teacher.get_input_embeddings().weight.float()
        self.basis = self._directions(embedding[windows.flatten().to(embedding.device)])
        self.stream = torch.empty(0)
        student.get_input_embeddings().weight.copy_(embedding @ self.basis)

    def blocks(self) -> Iterator[_Block]:
        """Both blocks of every layer, first to last."""
        family = self.family
        for whole, layer in zip(family.layers(self.teacher), family.layers(self.student), strict=True):
            adapters = [layer.get_submodule(name) for name in ("attention_adapter", "mlp_adapter")]
            writers = [(output(whole), output(layer)) for output in (family.attention_output, family.mlp_output)]
            norms = zip(family.readers(whole), family.readers(layer), writers, adapters, strict=True)
            for (wide, full), (norm, readers), writer, adapter in norms:
                gain = wide.get_parameter("weight").float()
                yield _Block(gain, norm, list(zip(full, readers, strict=True)), writer, adapter)

    def hooks(self, block: _Block) -> list[RemovableHandle]:
        """Hooks that slice ``block``."""
        return [
            block.norm.register_forward_pre_hook(partial(self._begin, block)),
            block.writer[1].register_forward_pre_hook(partial(self._end, block)),
        ]

    def _begin(self, block: _Block, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.stream = inputs[0].flatten(0, 1)
        for whole, reader in block.readers:
            matrix_of(reader).copy_((matrix_of(whole).float() * block.gain) @ self.basis)

    def _end(self, block: _Block, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        whole, writer = block.writer
        matrix, bias, before = matrix_of(whole).float(), bias_of(whole), self.basis
        added = inputs[0].flatten(0, 1) @ matrix.T
        if bias is not None:
            added += bias.float()
        self.basis = self._directions(self.stream @ before.T + added)
        if bias is not None:
            writer.get_parameter("bias").copy_(bias.float() @ self.basis)
        matrix_of(writer).copy_(self.basis.T @ matrix)
        block.adapter.get_parameter("weight").copy_(self.basis.T @ before)

    def finish(self) -> None:
        """Set the output embedding, which reads the rotated stream and has the weights of the final norm."""
        gain = self.family.norms(self.teacher)[-1].get_parameter("weight").float()
        head = self.family.output_weight(self.teacher).float() * gain
        self.family.output_weight(self.student).copy_(head @ self.basis)

    def _directions(self, stream: Tensor) -> Tensor:
        """The first principal components of ``stream`` (N, H) as an RMSNorm without weights scales it, (H, width).

        They are the eigenvectors of C = sum X^T X with the largest eigenvalues, X being the output of the norm.
        """
        second = second_moments(nn.functional.normalize(stream, dim=1)).double()
        vectors: Tensor = torch.linalg.eigh(second).eigenvectors
        return vectors.flip(1)[:, : self.width].float()
