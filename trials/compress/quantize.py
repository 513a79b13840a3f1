"""Quantizes the matrices of a student with bitsandbytes, and writes them as transformers reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

from search_spaces.compression import BITS, Quantization
from search_spaces.errors import InputError
from trials.compress.matrices import Matrix, layer_matrices

DTYPE = torch.bfloat16  # of the weights that are quantized, and of those that are left as they are


def check_installed(quantization: Quantization) -> None:
    """Raise InputError when the library that ``quantization`` needs is not installed."""
    if quantization.scheme != "none":
        _functional()


def rounded(weight: Tensor, quantization: Quantization) -> Tensor:
    """``weight`` (outputs, inputs) after it was quantized and read back, in its own dtype.

    Raises InputError when bitsandbytes is not installed.
    """
    tensors = _encoded(weight.detach(), quantization)
    return _decoded(tensors, quantization).to(weight.dtype)


def quantized_state(student: PreTrainedModel, quantization: Quantization) -> dict[str, Tensor]:
    """The state of ``student`` in `DTYPE` with its matrices quantized: names and tensors of the exported file.

    The matrices are quantized as `rounded` does. They are those of `layer_matrices`, stored as (outputs, inputs).
    """
    state = {name: tensor.to(DTYPE) for name, tensor in _once(student)}
    for matrix in layer_matrices(student, quantization.matrices):
        del state[f"{matrix.name}.weight"]
        state |= _named(matrix, _encoded(matrix.weight.detach(), quantization), quantization)
    return state


def quantization_config(student: PreTrainedModel, quantization: Quantization) -> dict[str, Any]:
    """The ``quantization_config`` of an exported configuration, from which transformers chooses its classes."""
    skipped = [*_left_alone(student, quantization), "lm_head", "embed_out"]
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


def _once(student: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The parameters of ``student`` by name; tied ones once."""
    return ((name, parameter.detach()) for name, parameter in student.named_parameters())


def _encoded(weight: Tensor, quantization: Quantization) -> tuple[Tensor, Any]:
    """The codes of ``weight`` (outputs, inputs), and its scales or bitsandbytes' state."""
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


def _decoded(tensors: tuple[Tensor, Any], quantization: Quantization) -> Tensor:
    codes, scales = tensors
    if quantization.scheme == "int8":
        return codes.float() * (scales.float() / 127)[:, None]
    decoded: Tensor = _functional().dequantize_4bit(codes, scales)
    return decoded


def _named(matrix: Matrix, tensors: tuple[Tensor, Any], quantization: Quantization) -> dict[str, Tensor]:
    """The tensors of one matrix by their names in a checkpoint that transformers reads."""
    codes, scales = tensors
    if quantization.scheme == "int8":
        layout = torch.tensor(0, dtype=torch.uint8)  # bitsandbytes' number for rows one after the other
        return {f"{matrix.name}.weight": codes, f"{matrix.name}.SCB": scales, f"{matrix.name}.weight_format": layout}
    further = scales.as_dict(packed=True).items()
    return {f"{matrix.name}.weight": codes, **{f"{matrix.name}.weight.{name}": one for name, one in further}}


def _functional() -> ModuleType:
    """bitsandbytes' functions. Raises InputError when it is not installed."""
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        names = " and ".join(one for one in BITS if one != "none")
        raise InputError(
            f"quantization: {names} need bitsandbytes, which is not installed; pip install 'llm-nas[quant]'"
        ) from error
    module: ModuleType = functional
    return module


def rounding_errors(matrices: Iterable[Matrix], quantization: Quantization) -> Iterator[tuple[Matrix, Tensor]]:
    """Each matrix with the error of its quantization, (outputs, inputs): `rounded` minus the weight."""
    for one in matrices:
        weight = one.weight.detach()
        yield one, rounded(weight, quantization) - weight
