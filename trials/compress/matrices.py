"""The weight matrices of a model's layers, by the part of the layer that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from search_spaces.compression import MATRICES
from trials.families.lookup import family_of_student


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix of a model: the ``module`` that holds it as ``weight``, its ``name`` in the model, and its ``part``.

    ``part`` is "attention" or "mlp".
    """

    name: str
    part: str
    module: nn.Module

    @property
    def inputs_first(self) -> bool:
        """Whether the weight is stored as (inputs, outputs), as in GPT-2's Conv1D."""
        return isinstance(self.module, Conv1D)

    @property
    def weight(self) -> Tensor:
        """The weight as (outputs, inputs), a view."""
        weight = self.module.weight
        assert isinstance(weight, Tensor), "layer_matrices takes modules with a weight"
        return weight.T if self.inputs_first else weight


def layer_matrices(model: PreTrainedModel, parts: Iterable[str] = MATRICES) -> list[Matrix]:
    """All matrices in the layers of ``model`` that belong to ``parts``, first layer first.

    Embeddings and the output projection are not in a layer, so they are not among them.
    """
    family = family_of_student(model.config)
    wanted, names = set(parts), {id(one): name for name, one in model.named_modules()}
    found = []
    for layer in family.layers(model):
        neurons = {id(module) for _, readers in list(family.readers(layer))[1:] for module in readers}
        neurons.add(id(family.mlp_output(layer)))
        for module in layer.modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                part = "mlp" if id(module) in neurons else "attention"
                found.append(Matrix(names[id(module)], part, module))
    return [one for one in found if one.part in wanted]
