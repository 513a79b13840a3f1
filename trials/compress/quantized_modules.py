"""Models with matrices of bitsandbytes or torchao, as servers run them: to time, and to train adapters beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from search_spaces.compression import Quantization
from search_spaces.stored_size import NF4_OUTPUTS
from trials.compress.extras import SCHEMES, check_installed
from trials.compress.matrices import Matrix, layer_matrices
from trials.compress.torchao_codes import quantize
from trials.families.base import bias_of

NF4 = Quantization("nf4")


def with_codes(model: PreTrainedModel, quantization: Quantization = NF4) -> PreTrainedModel:
    """Quantize the matrices in the layers of ``model``, in place, and return it. They do not train.

    On a CPU NF4 matrices are not repacked for its kernel, as bitsandbytes does at the first forward pass: gradients do
    not pass repacked matrices, and a later save is wrong. `allow_repacking` allows it, when neither is wanted any more.

    Raises InputError when the library of the scheme is not installed.
    """
    if quantization.scheme == "none":
        return model
    check_installed(SCHEMES[quantization.scheme], quantization.scheme)
    make = {"int8": _in_eight_bits, "nf4": _in_four_bits, "int8wo": _by_torchao}[quantization.scheme]
    for matrix in layer_matrices(model, quantization.matrices):
        made = make(matrix, model, quantization)
        made.bias = bias_of(matrix.module)
        model.set_submodule(matrix.name, made.train(model.training))
    if quantization.scheme != "int8wo":
        setattr(model, f"is_loaded_in_{quantization.bits}bit", True)  # peft asks for it
    return model


def allow_repacking(model: nn.Module) -> None:
    """Let bitsandbytes repack the matrices whose sizes its CPU kernel takes. The others are dequantized when used."""
    coded: list[Any] = [one for one in model.modules() if hasattr(one, "support_avx512bf16_for_cpu")]
    if coded:
        from bitsandbytes.functional import has_avx512bf16  # takes seconds to import

        for module in coded:
            group = module.weight.quant_state.blocksize
            fits = not (module.out_features % NF4_OUTPUTS or module.in_features % group)
            module.support_avx512bf16_for_cpu = fits and has_avx512bf16()


def _in_four_bits(matrix: Matrix, model: PreTrainedModel, how: Quantization) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit  # takes seconds to import

    (outputs, inputs), bias = matrix.weight.shape, bias_of(matrix.module)
    made = Linear4bit(inputs, outputs, bias is not None, compute_dtype=model.dtype, quant_type="nf4", device="meta")
    settings = {"quant_type": "nf4", "blocksize": how.group, "compress_statistics": how.double}
    weight = Params4bit(matrix.weight.detach().contiguous(), requires_grad=False, module=made, **settings)
    made.weight = weight.to(model.device)
    made.support_avx512bf16_for_cpu = False
    return made


def _in_eight_bits(matrix: Matrix, model: PreTrainedModel, how: Quantization) -> Any:
    from bitsandbytes.nn import Int8Params, Linear8bitLt  # takes seconds to import

    (outputs, inputs), bias = matrix.weight.shape, bias_of(matrix.module)
    made = Linear8bitLt(inputs, outputs, bias is not None, has_fp16_weights=False, device="meta")
    weight = matrix.weight.detach().contiguous().to(torch.float16)
    made.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(model.device)
    return made


def _by_torchao(matrix: Matrix, model: PreTrainedModel, how: Quantization) -> Any:
    outputs, inputs = matrix.weight.shape
    made = nn.Linear(inputs, outputs, bias=bias_of(matrix.module) is not None, device="meta")
    made.weight = nn.Parameter(matrix.weight.detach().contiguous(), requires_grad=False)
    return quantize(made)
