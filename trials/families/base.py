"""The interface of a model family. Only the family's own file knows its module names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from search_spaces.architecture import Architecture
from trials.families.shapes import LayerSettings, by_layer


@dataclass(frozen=True, eq=False)
class Kept:
    """The parts of a teacher that stay, as ascending indices in the teacher's order.

    ``layers`` (depth,) and ``hidden`` (width,) are one choice for the network. ``heads``, ``kv_heads`` and ``mlp`` hold
    one index vector for each kept layer, first layer first. Heads are in the order of their key/value heads.
    """

    layers: Tensor
    hidden: Tensor
    heads: tuple[Tensor, ...]
    kv_heads: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]


class Family(Protocol):
    """One kind of decoder: gives access to its parts, runs it, cuts it, and builds students.

    Every method is a pure function of its arguments. ``model`` is a teacher or a student of the family.
    """

    def build(
        self, config: PretrainedConfig, architecture: Architecture, settings: LayerSettings | None = None
    ) -> PreTrainedModel:
        """A student without weights (parameters on the meta device) for a teacher with ``config``.

        ``settings`` are those of its layers. They may be left out if all layers of the teacher have the same ones.
        It has the stock class if `ModelShape.is_stock` is true, otherwise the family's custom class.
        """
        ...

    def cut(self, model: PreTrainedModel, kept: Kept) -> dict[str, Tensor]:
        """The student's weights by name, copied from slices of the teacher's; tied weights once."""
        ...

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers, first to last. Each maps its first argument (B, T, hidden) to a tensor of that shape.

        The output of a layer is its input plus the outputs of `attention_output` and `mlp_output`.
        """
        ...

    def norms(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Every norm of the residual stream, the final norm last; outputs are (B, T, hidden)."""
        ...

    def readers(self, layer: nn.Module) -> Sequence[tuple[nn.Module, Sequence[nn.Module]]]:
        """Each norm of a layer, with the projections that read its output."""
        ...

    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The embeddings whose sum is the initial stream; weights are (entries, hidden)."""
        ...

    def attention_output(self, layer: nn.Module) -> nn.Module:
        """The projection of a layer that reads its concatenated heads, (B, T, heads * head_dim)."""
        ...

    def mlp_output(self, layer: nn.Module) -> nn.Module:
        """The projection of a layer that reads its MLP neurons after the activation, (B, T, mlp)."""
        ...

    def backbone(self, model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, (B, T, hidden), of ``tokens`` (B, T).

        ``mask`` (B, T, bool) is False at padding, on either side. Padding is not attended to and takes up no position.
        """
        ...

    def output_weight(self, model: PreTrainedModel) -> Tensor:
        """The matrix (vocab, hidden) that turns `backbone` states into logits."""
        ...


# Values of a teacher's configuration that the student does not inherit. Saving the student sets most of them anew. Its
# weights are plain numbers, even if the teacher's were quantized.
NOT_INHERITED = (
    "model_type",
    "architectures",
    "transformers_version",
    "_name_or_path",
    "auto_map",
    "quantization_config",
)


def inherited(config: PretrainedConfig, depth: int, settings: LayerSettings | None) -> dict[str, Any]:
    """The values of a teacher's configuration that a student of ``depth`` layers inherits.

    A student generates with a cache, even if its teacher was saved without (as training with gradient checkpointing
    leaves it). Raises ValueError when ``settings`` are missing that differ between layers.
    """
    values = {name: value for name, value in config.to_dict().items() if name not in NOT_INHERITED}
    lists = {name: each for name, each in by_layer(config).items() if name in values}
    if settings is None:
        if mixed := [name for name, each in lists.items() if any(one != each[0] for one in each)]:
            raise ValueError(f"the {mixed[0]} of the kept layers must be given, because the teacher's layers differ")
        settings = {name: each[:depth] for name, each in lists.items()}
    return values | {name: list(settings[name]) for name in lists} | {"use_cache": True}


def without_weights(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The model of ``make`` with tied parameters on the meta device and real buffers."""
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
    """The channels (heads * head_dim,) of ``heads`` among the concatenated heads."""
    return (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).flatten()


def cut_layer(
    layer: nn.Module, cuts: Mapping[str, tuple[str, str]], kept: Mapping[str, Tensor], *, inputs_first: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter of ``layer`` by name, cut to the indices ``kept``.

    ``cuts`` names the axes (outputs, inputs) of each submodule's weight; "" is not cut. A vector is cut by the outputs.
    ``inputs_first`` is for weights stored as (inputs, outputs), as in Conv1D.
    """
    for name, parameter in layer.named_parameters():
        outputs, inputs = cuts[name.rpartition(".")[0]]
        places = (outputs,) if parameter.dim() == 1 else (inputs, outputs) if inputs_first else (outputs, inputs)
        weight = parameter.detach().clone()
        for dimension, place in enumerate(places):
            weight = weight.index_select(dimension, kept[place]) if place else weight
        yield name, weight


def matrix_of(projection: nn.Module) -> Tensor:
    """The weight of a projection as (outputs, inputs), a writable view."""
    weight: Tensor = projection.get_parameter("weight")
    return weight.T if isinstance(projection, Conv1D) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a projection or a norm, or None."""
    return dict(module.named_parameters(recurse=False)).get("bias")


@contextmanager
def fused_gelu(*models: nn.Module) -> Iterator[None]:
    """While open, ``models`` use torch's own ``gelu_new``: one kernel instead of eight, equal up to rounding."""
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
    """Compile every decoder layer of ``model`` at its first run. Layers of equal shape share the compiled code."""
    for layer in family.layers(model):
        layer.compile()


def centres(norm: nn.Module) -> bool:
    """Whether a norm subtracts the mean of all channels. LayerNorm does; RMSNorm does not."""
    return isinstance(norm, nn.LayerNorm)


def positions_of(mask: Tensor | None) -> dict[str, Tensor]:
    """A model's arguments for ``mask`` (B, T). Positions count real tokens only, so left padding shifts none."""
    if mask is None:
        return {}
    return {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0)}
