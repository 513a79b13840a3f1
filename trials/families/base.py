"""What the rest of the project may ask of a model family; only the family's own file knows its module names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape


@dataclass(frozen=True, eq=False)
class Kept:
    """Which parts of a teacher stay, as ascending indices into the teacher's own order.

    ``layers`` (depth,) and ``hidden`` (width,) are one choice for the network; ``heads`` and ``mlp`` hold one
    index vector for each kept layer, first layer first.
    """

    layers: Tensor
    hidden: Tensor
    heads: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]


class Family(Protocol):
    """One kind of decoder: how it is measured, where its activations are read, how it is cut and run.

    Every method is a pure function of its arguments. ``model`` is a teacher or a student of the family.
    """

    def shape(self, config: PretrainedConfig) -> ModelShape:
        """The geometry that ``config`` describes. Raises InputError when the family cannot prune such a model."""
        ...

    def build(self, config: PretrainedConfig, architecture: Architecture) -> PreTrainedModel:
        """A student without weights - parameters on the meta device - for a teacher with ``config``.

        It is of the stock class when `ModelShape.is_stock` says so, otherwise of the family's custom class.
        """
        ...

    def cut(self, model: PreTrainedModel, kept: Kept) -> dict[str, Tensor]:
        """The student's weights by name: copies of slices of the teacher's; tied weights once."""
        ...

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers, first to last; each maps its first argument (B, T, hidden) to a tensor like it."""
        ...

    def norms(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Every normalisation of the residual stream, the final one included; outputs are (B, T, hidden)."""
        ...

    def attention_output(self, layer: nn.Module) -> nn.Module:
        """The projection of a layer that reads its concatenated heads, (B, T, heads * head_dim)."""
        ...

    def mlp_output(self, layer: nn.Module) -> nn.Module:
        """The projection of a layer that reads its MLP neurons after the activation, (B, T, mlp)."""
        ...

    def backbone(self, model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states after the final normalisation, (B, T, hidden), of ``tokens`` (B, T).

        ``mask`` (B, T, bool) is False at padding, on either side: padding is not attended to and counts for
        no position.
        """
        ...

    def output_weight(self, model: PreTrainedModel) -> Tensor:
        """The matrix (vocab, hidden) that turns `backbone` states into logits."""
        ...
