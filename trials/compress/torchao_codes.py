"""Weight-only int8 of torchao: the codes of a matrix, and the tensors of a checkpoint that transformers reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trials.compress.extras import check_installed

CODES, SCALES, ZEROS = "._weight_qdata", "._weight_scale", "._weight_zero_point"  # names in a checkpoint


def coded(weight: Tensor) -> Any:
    """The torchao tensor of ``weight`` (outputs, inputs): int8 codes ``qdata`` and a float32 ``scale`` for each row.

    Raises InputError when torchao is not installed.
    """
    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device="meta")
    holder.weight = nn.Parameter(weight, requires_grad=False)
    return quantize(holder).weight.data


def quantize(module: nn.Linear) -> nn.Linear:
    """Quantize the weight of ``module`` in place, and return it. Raises InputError when torchao is not installed."""
    check_installed("torchao", "quantization int8wo")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # takes seconds to import

    quantize_(module, Int8WeightOnlyConfig())
    return module


def tensors_of(name: str, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
    """The tensors of the matrix ``name`` in a checkpoint. The zero points of symmetric codes are 0."""
    return {
        f"{name}{CODES}": codes,
        f"{name}{SCALES}": scales,
        f"{name}{ZEROS}": torch.zeros(scales.shape, dtype=torch.int8),
    }


def flattened(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file with ``state``, whose quantized weights are from `coded`, and the file's metadata."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, metadata = flatten_tensor_state_dict(state)
    return tensors, metadata


def configuration(skipped: list[str]) -> dict[str, Any]:
    """The ``quantization_config`` of transformers, which leaves the modules ``skipped`` alone."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return dict(TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped).to_dict())
