"""The number of weights of low-rank adapters, in closed form."""

from __future__ import annotations

from search_spaces.architecture import Architecture
from search_spaces.compression import Adapters
from search_spaces.shape import ModelShape

FUSED = ("gpt2", "gpt_neox")  # families with one matrix for queries, keys and values


def adapter_parameters(shape: ModelShape, architecture: Architecture, adapters: Adapters) -> int:
    """The number of weights that ``adapters`` add to ``architecture``, before any of them is pruned.

    The adapter of a matrix (outputs, inputs) has ``rank * (outputs + inputs)`` weights (LoRA, arXiv 2106.09685).
    """
    layers = zip(architecture.heads, architecture.kv_heads, architecture.mlp, strict=True)
    sides = 0
    for heads, kv_heads, mlp in layers:
        inner, shared = heads * shape.head_dim, kv_heads * shape.head_dim
        if "attention" in adapters.matrices:
            readers = 1 if shape.family in FUSED else 3
            sides += readers * architecture.hidden + inner + 2 * shared + inner + architecture.hidden
        if "mlp" in adapters.matrices:
            sides += shape.mlp_matrices * (architecture.hidden + mlp)
    return adapters.rank * sides
