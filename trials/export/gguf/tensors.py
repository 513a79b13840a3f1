"""The number formats of a GGUF file, and what is not written in the one that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import dequantize, quantize
from torch import Tensor

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

# The types that the gguf package writes, and how a file says that most of it is of that type.
TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
# The largest rounding error of a type, as a share of the largest number of a row (of a block, for quantized types).
ROUNDING = {"f32": 0.0, "f16": 1e-3, "bf16": 5e-3, "q8_0": 0.01, "q5_1": 0.05, "q5_0": 0.07, "q4_1": 0.1, "q4_0": 0.14}
NEARLY_0 = 1e-3
SMALLEST = 1e-4  # a tensor that holds nothing larger is 0 in f16, whose steps are 6e-8 there
ALWAYS_F32 = ("position_embd.weight", "rope_freqs.weight")  # llama.cpp adds them to numbers in float32


@dataclass(frozen=True)
class Coded:
    """A tensor as a GGUF file holds it. ``fallback`` says that its rows did not allow the type asked for."""

    content: Array
    kind: GGMLQuantizationType
    fallback: bool


def coded(name: str, weight: Tensor, wanted: str) -> Coded:
    """The tensor ``name`` in the type ``wanted``, a key of `TYPES`.

    Vectors are in float32, as in every GGUF file. Matrices whose rows are no multiple of the type's block stay in f16.
    """
    numbers = weight.detach().float().contiguous().numpy()
    kind = TYPES[wanted][0]
    if numbers.ndim == 1 or name in ALWAYS_F32:
        return Coded(numbers, GGMLQuantizationType.F32, False)
    fits = numbers.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0
    written = kind if fits else GGMLQuantizationType.F16
    with np.errstate(over="ignore"):  # what f16 does not hold is found by `error_of`
        return Coded(quantize(numbers, written), written, not fits)


def error_of(one: Coded, weight: Tensor) -> float:
    """The largest rounding error of ``one`` as a share of the largest number of its row of ``weight``.

    Rows that are nearly 0 beside the rest count as `NEARLY_0` of the tensor's largest number.
    """
    numbers = weight.detach().float().numpy()
    largest = np.abs(numbers).max(axis=-1)
    with np.errstate(invalid="ignore"):  # of a scale that is infinite
        wrong = np.abs(dequantize(one.content, one.kind).reshape(numbers.shape) - numbers).max(axis=-1)
    return float((wrong / np.maximum(largest, max(NEARLY_0 * largest.max(), SMALLEST))).max())
