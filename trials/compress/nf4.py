"""4-bit NormalFloat matrices with double quantization (QLoRA, arXiv 2305.14314), with the library bitsandbytes."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from trials.compress.extras import check_installed
from trials.compress.matrices import Matrix, layer_matrices
from trials.families.base import bias_of

KERNEL_OUTPUTS, GROUP = 32, 64  # what the CPU kernel needs multiples of: rows in a block, weights with one scale


def with_nf4(model: PreTrainedModel) -> PreTrainedModel:
    """Quantize the matrices in the layers of ``model``, in place, and return it. They do not train.

    On a CPU they are not repacked for its kernel, as bitsandbytes does at the first forward pass: gradients do not pass
    repacked matrices, and a later save is wrong. `allow_repacking` allows it, when neither is wanted any more.

    Raises InputError when bitsandbytes is not installed.
    """
    check_installed("bitsandbytes", "nf4")
    for matrix in layer_matrices(model):
        model.set_submodule(matrix.name, _quantized(matrix, model))
    model.is_loaded_in_4bit = True  # peft asks for it
    return model


def allow_repacking(model: nn.Module) -> None:
    """Let bitsandbytes repack the matrices whose sizes its CPU kernel takes. The others are dequantized when used."""
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            fits = not (module.out_features % KERNEL_OUTPUTS or module.in_features % GROUP)
            module.support_avx512bf16_for_cpu = fits and has_avx512bf16()


def _quantized(matrix: Matrix, model: PreTrainedModel) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit  # takes seconds to import

    (outputs, inputs), bias = matrix.weight.shape, bias_of(matrix.module)
    made = Linear4bit(inputs, outputs, bias is not None, compute_dtype=model.dtype, quant_type="nf4", device="meta")
    weight = matrix.weight.detach().contiguous()
    made.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", blocksize=GROUP, module=made)
    made.weight = made.weight.to(model.device)
    made.bias = bias
    made.support_avx512bf16_for_cpu = False
    return made.train(model.training)
