"""Quantizes the matrices of a student with its library, and writes them as transformers reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

from search_spaces.compression import Quantization
from trials.compress import torchao_codes
from trials.compress.extras import check_installed
from trials.compress.matrices import layer_matrices

DTYPE = torch.bfloat16  # of the weights that are quantized, and of those that are left as they are


def rounded(weight: Tensor, quantization: Quantization) -> Tensor:
    """``weight`` (outputs, inputs) after it was quantized and read back, in its own dtype.

    Raises InputError when the library of the scheme is not installed.
    """
    return decoded(encoded(weight.detach(), quantization), quantization).to(weight.dtype)


def quantized_state(student: PreTrainedModel, quantization: Quantization) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of ``student`` in `DTYPE` with its matrices quantized: tensors by name, and the metadata of the file.

    The matrices are quantized as `rounded` does. They are those of `layer_matrices`, stored as (outputs, inputs).
    """
    state: dict[str, Any] = {name: one.detach().to(DTYPE) for name, one in student.named_parameters()}  # tied ones once
    for matrix in layer_matrices(student, quantization.matrices):
        weight = matrix.weight.detach()
        if quantization.scheme == "int8wo":
            state[f"{matrix.name}.weight"] = torchao_codes.coded(weight.to(DTYPE))
        else:
            del state[f"{matrix.name}.weight"]
            state |= to_tensors(matrix.name, encoded(weight, quantization))
    return torchao_codes.flattened(state) if quantization.scheme == "int8wo" else (state, {})


def quantization_config(student: PreTrainedModel, quantization: Quantization) -> dict[str, Any]:
    """The ``quantization_config`` of an exported configuration, from which transformers chooses its classes."""
    skipped = [*_left_alone(student, quantization), "lm_head", "embed_out"]
    if quantization.scheme == "int8wo":
        return torchao_codes.configuration(skipped)
    if quantization.scheme == "int8":
        return dict(BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped).to_dict())
    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": quantization.double}
    return dict(
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=DTYPE, llm_int8_skip_modules=skipped, **settings
        ).to_dict()
    )


def _left_alone(student: PreTrainedModel, quantization: Quantization) -> Iterator[str]:
    """The names of the layers' matrices that are not quantized."""
    chosen = {one.name for one in layer_matrices(student, quantization.matrices)}
    return (one.name for one in layer_matrices(student) if one.name not in chosen)


def encoded(weight: Tensor, quantization: Quantization) -> tuple[Tensor, Any]:
    """The codes of ``weight`` (outputs, inputs), and its scales: (outputs,), (outputs, 1) or bitsandbytes' state.

    Raises InputError when the library of the scheme is not installed.
    """
    if quantization.scheme == "int8wo":
        found = torchao_codes.coded(weight.to(DTYPE))
        return found.qdata, found.scale
    functional = _functional()
    if quantization.scheme == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return codes, scales
    codes, state = functional.quantize_4bit(
        weight.to(DTYPE).contiguous(),
        blocksize=quantization.group,
        compress_statistics=quantization.double,
        quant_type="nf4",
    )
    return codes, state


def decoded(tensors: tuple[Tensor, Any], quantization: Quantization) -> Tensor:
    """The weight (outputs, inputs) that the codes and scales of `encoded` stand for."""
    codes, scales = tensors
    if quantization.scheme == "int8wo":
        return torch.mul(codes.float(), scales)
    if quantization.scheme == "int8":
        return torch.mul(codes.float(), (scales.float() / 127)[:, None])
    weight: Tensor = _functional().dequantize_4bit(codes, scales)
    return weight


def to_tensors(name: str, found: tuple[Tensor, Any]) -> dict[str, Tensor]:
    """What `encoded` gives for the matrix ``name``, under the names in a checkpoint that transformers reads."""
    codes, scales = found
    if isinstance(scales, Tensor) and scales.dim() == 2:
        return torchao_codes.tensors_of(name, codes, scales)
    if isinstance(scales, Tensor):
        layout = torch.tensor(0, dtype=torch.uint8)  # bitsandbytes' number for rows one after the other
        return {f"{name}.weight": codes, f"{name}.SCB": scales, f"{name}.weight_format": layout}
    return {f"{name}.weight": codes, **{f"{name}.weight.{one}": part for one, part in scales.as_dict(True).items()}}


def codes_name(name: str, quantization: Quantization) -> str:
    """The name of the codes of the matrix ``name`` in a checkpoint."""
    return f"{name}{torchao_codes.CODES if quantization.scheme == 'int8wo' else '.weight'}"


def from_tensors(name: str, tensors: Mapping[str, Tensor], quantization: Quantization) -> tuple[Tensor, Any]:
    """The inverse of `to_tensors`."""
    codes = tensors[codes_name(name, quantization)]
    if quantization.scheme == "int8wo":
        return codes, tensors[f"{name}{torchao_codes.SCALES}"]
    if quantization.scheme == "int8":
        return codes, tensors[f"{name}.SCB"]
    start = f"{name}.weight."
    parts = {one.removeprefix(start): part for one, part in tensors.items() if one.startswith(start)}
    return codes, _functional().QuantState.from_dict(parts, codes.device)


def _functional() -> ModuleType:
    """bitsandbytes' functions. Raises InputError when it is not installed."""
    check_installed("bitsandbytes", "quantization")
    import bitsandbytes.functional as functional  # takes seconds to import

    module: ModuleType = functional
    return module
