"""Bytes of a candidate's exported weights, in closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from search_spaces.architecture import Architecture
from search_spaces.budget import Budget
from search_spaces.compression import Compression, Sparsity
from search_spaces.shape import ModelShape

DENSE = 2  # bytes of a bfloat16 number
HEADER = 100  # bytes of a tensor's entry in the header of a safetensors file: its name, dtype, shape and place
CONV1D = ("gpt2",)  # families whose matrices are no nn.Linear, which torchao does not quantize
FUSED = ("gpt2", "gpt_neox")  # families that hold queries, keys and values in one matrix

# bitsandbytes keeps these beside every NF4 matrix: 16 values of the code and a JSON with the shape. With double
# quantization, it also keeps the 256 values of the code of the scales, and one scale for 256 scales.
NF4_TABLE, NF4_STATE, SCALES_TABLE, SCALES_GROUP = 64, 80, 1024, 256
NF4_DOUBLE_STATE = 170

# torchao keeps a zero point of a byte beside the scale of a row, and describes every tensor in the file's header.
TORCHAO_MATRIX, TORCHAO_TENSOR = 300, 70

NF4_OUTPUTS = 32  # a matrix' outputs must be a multiple of it for bitsandbytes' kernel on a CPU, the inputs of a group


@dataclass(frozen=True)
class MatrixSize:
    """A matrix of a layer: its ``part``, "attention" or "mlp", and its numbers of ``outputs`` and ``inputs``."""

    part: str
    outputs: int
    inputs: int

    @property
    def weights(self) -> int:
        """Its number of weights."""
        return self.outputs * self.inputs


def matrix_sizes(shape: ModelShape, architecture: Architecture) -> Iterator[MatrixSize]:
    """The matrices of all layers of ``architecture``, first layer first."""
    layers = zip(architecture.heads, architecture.kv_heads, architecture.mlp, strict=True)
    return (one for layer in layers for one in _layer_sizes(shape, architecture.hidden, *layer))


def distinct_matrices(shape: ModelShape, architecture: Architecture) -> set[MatrixSize]:
    """The sizes of the matrices in the layers of ``architecture``, each once."""
    layers = set(zip(architecture.heads, architecture.kv_heads, architecture.mlp, strict=True))
    return {one for layer in layers for one in _layer_sizes(shape, architecture.hidden, *layer)}


@lru_cache(maxsize=4096)
def _layer_sizes(shape: ModelShape, hidden: int, heads: int, kv_heads: int, mlp: int) -> tuple[MatrixSize, ...]:
    inner, shared = heads * shape.head_dim, kv_heads * shape.head_dim
    readers = (inner + 2 * shared,) if shape.family in FUSED else (inner, shared, shared)
    attention = [MatrixSize("attention", outputs, hidden) for outputs in readers]
    gates = [MatrixSize("mlp", mlp, hidden) for _ in range(shape.mlp_matrices - 1)]
    return (*attention, MatrixSize("attention", hidden, inner), *gates, MatrixSize("mlp", hidden, mlp))


def runs_everywhere(shape: ModelShape, architecture: Architecture) -> bool:
    """Whether the library of the quantization takes all matrices of ``architecture``, on a CPU too.

    bitsandbytes' NF4 asks for sizes (`NF4_OUTPUTS`), and torchao for families without `CONV1D`.
    """
    how = architecture.compression.quantization
    if how.scheme == "int8wo":
        return shape.family not in CONV1D
    if how.scheme != "nf4":
        return True
    sizes = (one for one in distinct_matrices(shape, architecture) if one.part in how.matrices)
    return not any(one.outputs % NF4_OUTPUTS or one.inputs % how.group for one in sizes)


def stored_bytes(shape: ModelShape, architecture: Architecture) -> int:
    """Bytes of the exported weights of ``architecture``, within 1 % of the file.

    Without sparsity this is the checkpoint: bfloat16 numbers, or the layout of the quantization's library. A sparse
    matrix takes a bit for each weight, which says whether it is 0, and the other weights
    (`trials.compress.packed`). Tied weights count once. Adapters are merged into the weights first.
    """
    total, compressed = 0, 0
    layers = Counter(zip(architecture.heads, architecture.kv_heads, architecture.mlp, strict=True))
    for layer, count in layers.items():
        for one in _layer_sizes(shape, architecture.hidden, *layer):
            total += count * matrix_bytes(one, architecture.compression)
            compressed += count * one.weights
    rest = shape.parameters(architecture) - compressed
    header = HEADER + TORCHAO_TENSOR * (architecture.compression.quantization.scheme == "int8wo")
    return DENSE * rest + total + header * _tensors(shape, architecture)


def memory_bytes(shape: ModelShape, architecture: Architecture) -> int:
    """Bytes of the weights in memory and of a key/value cache of all positions in bfloat16.

    Zeros take up memory like other weights, because no kernel of ours leaves them out.
    """
    if architecture.compression.quantization.scheme == "none":
        return shape.memory_bytes(architecture)
    dense = replace(architecture, compression=replace(architecture.compression, sparsity=Sparsity()))
    return stored_bytes(shape, dense) + shape.positions * shape.kv_cache_bytes(architecture)


def size_in(unit: str, shape: ModelShape, architecture: Architecture) -> int:
    """The size of ``architecture`` in the ``unit`` of a budget, "parameters" or "bytes"."""
    return stored_bytes(shape, architecture) if unit == "bytes" else shape.parameters(architecture)


def fits(budget: Budget, shape: ModelShape, architecture: Architecture) -> bool:
    """Whether ``architecture`` lies in the band of ``budget``."""
    return size_in(budget.unit, shape, architecture) in budget


@lru_cache(maxsize=65536)
def matrix_bytes(size: MatrixSize, compression: Compression) -> int:
    """Bytes of one matrix as `stored_bytes` counts them, with the entries of its further tensors in the header."""
    sparse = bool(compression.sparsity.level) and size.part in compression.sparsity.matrices
    coded = compression.quantization.scheme != "none" and size.part in compression.quantization.matrices
    kept = kept_weights(size, compression) if sparse else size.weights
    mask = ceil(size.weights / 8) + HEADER if sparse else 0
    if not coded:
        return mask + DENSE * kept
    return mask + ceil(kept * compression.quantization.bits / 8) + _scale_bytes(size, compression)


def kept_weights(size: MatrixSize, compression: Compression) -> int:
    """How many weights of a sparse matrix are not 0."""
    return size.weights - round(compression.sparsity.level * size.weights)


def _scale_bytes(size: MatrixSize, compression: Compression) -> int:
    """Bytes of the scales of a quantized matrix, and of what its library keeps beside them."""
    how = compression.quantization
    if how.scheme == "int8":
        return 4 * size.outputs + 1 + 2 * HEADER
    if how.scheme == "int8wo":
        return 5 * size.outputs + 2 * HEADER + TORCHAO_MATRIX
    groups = ceil(size.weights / how.group)
    if not how.double:
        return 4 * groups + NF4_TABLE + NF4_STATE + 3 * HEADER
    nested = 4 * ceil(groups / SCALES_GROUP) + SCALES_TABLE
    return groups + nested + NF4_TABLE + NF4_DOUBLE_STATE + 5 * HEADER


def _tensors(shape: ModelShape, architecture: Architecture) -> int:
    """How many tensors the checkpoint has, each quantized or sparse matrix counted once."""
    attention = 2 if shape.family in FUSED else 4
    biases = shape.qkv_bias * (attention - 1) + shape.output_bias + shape.mlp_bias * shape.mlp_matrices
    layer = attention + shape.mlp_matrices + biases + 2 * shape.norm_vectors + shape.head_norms
    return architecture.depth * layer + shape.norm_vectors + 1 + shape.learned_positions + (not shape.tied)
