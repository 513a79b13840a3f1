"""Low-rank adapters beside the matrices of a student (LoRA, arXiv 2106.09685), with the library peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from search_spaces.compression import Adapters
from search_spaces.errors import InputError
from trials.compress.extras import check_installed
from trials.compress.matrices import layer_matrices

ADAPTER_RATE = 10  # times the learning rate of the recipe: docs/lab/stack.md


def with_adapters(student: PreTrainedModel, adapters: Adapters, seed: int = 0) -> PreTrainedModel:
    """Put ``adapters`` beside the matrices of ``student``, in place, and return it. Only the adapters train then.

    The output does not change, because B starts at 0. A is drawn from ``seed``. The student keeps its class and the
    names of its modules, so its family still finds ``weight`` of each projection: the matrix without the adapter.
    Adapters are not pruned here: `prune_adapters` does that, once they have learned something.

    Raises InputError without a rank, and when peft is not installed.
    """
    if not adapters.rank:
        raise InputError("adapters.rank 0: must be at least 1; leave adapters out for none")
    if list(_adapted(student)):
        raise ValueError("the student has adapters already; merge them first")
    check_installed("peft", "adapters")
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    matrices = layer_matrices(student, adapters.matrices)
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        target_modules=[one.name for one in matrices],  # full names: peft does not know our custom classes
        fan_in_fan_out=matrices[0].inputs_first,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, student)
    return student


def prune_adapters(student: PreTrainedModel, sparsity: float) -> None:
    """Set the smallest weights of each A and each B to 0, the share ``sparsity`` of them, and hold them there.

    Whatever an optimizer does later, these weights stay exactly 0, until `merged`.
    """
    for _, factor in _factors(student):
        weight = factor.weight.detach()
        smallest = weight.abs().flatten().argsort(stable=True)[: round(sparsity * weight.numel())]
        mask = torch.ones_like(weight).flatten().index_fill(0, smallest, 0).view_as(weight)
        _release(factor)
        parametrize.register_parametrization(factor, "weight", _Masked(mask))


def adapter_state(student: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of the weights of all adapters by name, with zeros where they are pruned."""
    return {name: factor.weight.detach().clone() for name, factor in _factors(student)}


@torch.no_grad()
def load_adapters(student: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Set the weights of all adapters to those of `adapter_state`. Raises KeyError when one is missing."""
    for name, factor in _factors(student):
        factor.weight.copy_(state[name])


def merged(student: PreTrainedModel) -> PreTrainedModel:
    """Add the adapters of ``student`` to its matrices, in place, and return it: a plain model again, all of it trains.

    Raises ValueError when a matrix is quantized, because the sum would be rounded once more.
    """
    for name, module in list(_adapted(student)):
        base = module.get_base_layer()
        if type(base) not in (nn.Linear, Conv1D):
            raise ValueError(f"{name}: adapters beside a quantized matrix cannot be merged; keep them beside it")
        for factor in (*module.lora_A.values(), *module.lora_B.values()):
            _release(factor)
        module.merge()
        student.set_submodule(name, base)
    if hasattr(student, "peft_config"):
        del student.peft_config
    return student.requires_grad_(True)


class _Masked(nn.Module):
    """A parametrization: the weight times a mask of zeros and ones."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def _release(factor: nn.Module) -> None:
    """Turn a pruned weight into a plain one, with its zeros."""
    if parametrize.is_parametrized(factor, "weight"):
        parametrize.remove_parametrizations(factor, "weight", leave_parametrized=True)


def _adapted(student: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The modules of ``student`` that hold a matrix and its adapter, by name."""
    return ((name, module) for name, module in student.named_modules() if hasattr(module, "lora_A"))


def _factors(student: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """A and B of every adapter, by name; each is an nn.Linear."""
    for name, module in _adapted(student):
        yield from ((f"{name}.A", one) for one in module.lora_A.values())
        yield from ((f"{name}.B", one) for one in module.lora_B.values())
