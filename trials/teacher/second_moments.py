"""Second moments of activations."""

from __future__ import annotations

from torch import Tensor

STRIP = 256  # columns in one product


def second_moments(inputs: Tensor) -> Tensor:
    """The sums of products (n, n) of the columns of ``inputs`` (N, n). For large n, symmetry saves half of the work."""
    sums = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
    for start in range(0, inputs.shape[1], STRIP):
        sums[start:, start : start + STRIP] = inputs[:, start:].T @ inputs[:, start : start + STRIP]
    return sums.tril() + sums.tril(-1).T


def moments_count(width: int) -> int:
    """The number of sums that `second_moments` computes for ``width`` columns."""
    return sum((width - start) * min(STRIP, width - start) for start in range(0, width, STRIP))
