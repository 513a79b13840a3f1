"""What the rest of the project may ask of a model family; only the family's own file knows its module names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from search_spaces.architecture import Architecture


@dataclass(frozen=True, eq=False)
class Kept:
    """Which parts of a teacher stay, as ascending indices into the teacher's own order.

    ``layers`` (depth,) and ``hidden`` (width,) are one choice for the network; ``heads``, ``kv_heads`` and ``mlp``
    hold one index vector for each kept layer, first layer first. Heads are in the order of their key/value heads.
    """

    layers: Tensor
    hidden: Tensor
    heads: tuple[Tensor, ...]
    kv_heads: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]


class Family(Protocol):
    """One kind of decoder: how it is measured, where its activations are read, how it is cut and run.

    Every method is a pure function of its arguments. ``model`` is a teacher or a student of the family.
    """

    def build(self, config: PretrainedConfig, architecture: Architecture) -> PreTrainedModel:
        """A student without weights - parameters on the meta device - for a teacher with ``config``.

        It is of the stock class when `ModelShape.is_stock` says so, otherwise of the family's custom class.
        """
        ...

    def cut(self, model: PreTrainedModel, kept: Kept) -> dict[str, Tensor]:
        """The student's weights by name: copies of slices of the teacher's; tied weights once."""
        ...

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers, first to last; each maps its first argument (B, T, hidden) to a tensor like it.

        What a layer gives is what it reads, plus what `attention_output` gives, plus what `mlp_output` gives.
        """
        ...

    def norms(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Every normalisation of the residual stream, the final one included; outputs are (B, T, hidden)."""
        ...

    def readers(self, layer: nn.Module) -> Sequence[tuple[nn.Module, Sequence[nn.Module]]]:
        """Each norm of a layer with the projections that read what it gives."""
        ...

    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Whatever the stream begins with as their sum; weights are (entries, hidden)."""
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


# What the student's configuration does not take from the teacher's: it is said anew when the student is saved.
NOT_INHERITED = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map")


def inherited(config: PretrainedConfig, *but: str) -> dict[str, object]:
    """The values of a teacher's configuration that a student starts from, without those named in ``but``."""
    return {name: value for name, value in config.to_dict().items() if name not in (*NOT_INHERITED, *but)}


def without_weights(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The model of ``make`` with its parameters on the meta device, tied, and its buffers as they should be."""
    with torch.device("meta"), no_init_weights():  # even on meta, drawing numbers takes 0.3 s for gpt2-medium
        model = make()
    for name, module in list(model.named_modules()):
        if any(
            buffer.is_meta for buffer in module.buffers(recurse=False)
        ):  # rotary frequencies are not in a checkpoint
            model.set_submodule(name, type(module)(config=module.config))
    model.tie_weights()
    return model


def channels(heads: Tensor, head_dim: int) -> Tensor:
    """The places (heads * head_dim,) of whole ``heads`` among the concatenated ones."""
    return (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).flatten()


def cut_layer(
    layer: nn.Module, cuts: Mapping[str, tuple[str, str]], kept: Mapping[str, Tensor], *, inputs_first: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of ``layer`` by its name, cut to what is ``kept``.

    ``cuts`` names for each submodule the (outputs, inputs) that its weight maps between; a vector is cut by the
    outputs, and "" is not cut. ``inputs_first`` is for weights kept as (inputs, outputs), as Conv1D does.
    """
    for name, parameter in layer.named_parameters():
        outputs, inputs = cuts[name.rpartition(".")[0]]
        places = (outputs,) if parameter.dim() == 1 else (inputs, outputs) if inputs_first else (outputs, inputs)
        weight = parameter.detach().clone()
        for dimension, place in enumerate(places):
            weight = weight.index_select(dimension, kept[place]) if place else weight
        yield name, weight


def matrix_of(projection: nn.Module) -> Tensor:
    """The weight of a projection as (outputs, inputs), a view that can be written to."""
    weight: Tensor = projection.get_parameter("weight")
    return weight.T if isinstance(projection, Conv1D) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    """What a projection or a norm adds, if it does."""
    return dict(module.named_parameters(recurse=False)).get("bias")


@contextmanager
def fused_gelu(*models: nn.Module) -> Iterator[None]:
    """While open, ``gelu_new`` in ``models`` is torch's own: the same but for rounding, one kernel for eight."""
    places = [
        (module, name, child)
        for module in chain.from_iterable(model.modules() for model in models)
        for name, child in module.named_children()
        if isinstance(child, NewGELUActivation)
    ]
    for module, name, _ in places:
        setattr(module, name, ACT2FN["gelu_pytorch_tanh"])
    try:
        yield
    finally:
        for module, name, child in places:
            setattr(module, name, child)


def compile_layers(family: Family, model: PreTrainedModel) -> None:
    """Have every decoder layer of ``model`` compiled when it first runs; layers of one shape share the code."""
    for layer in family.layers(model):
        layer.compile()


def centres(norm: nn.Module) -> bool:
    """Whether a norm takes the mean of all channels away, as LayerNorm does and RMSNorm does not."""
    return isinstance(norm, nn.LayerNorm)


def positions_of(mask: Tensor | None) -> dict[str, Tensor]:
    """A model's arguments for ``mask`` (B, T): positions count the real tokens only, so left padding shifts none."""
    if mask is None:
        return {}
    return {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0)}
