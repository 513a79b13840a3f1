"""Sums of products of activations."""

from __future__ import annotations

from torch import Tensor

STRIP = 256  # columns computed at a time


def second_moments(inputs: Tensor) -> Tensor:
    """The sums of products (n, n) of the columns of ``inputs`` (N, n); those that are equal are computed once."""
    sums = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
    for start in range(0, inputs.shape[1], STRIP):
        sums[start:, start : start + STRIP] = inputs[:, start:].T @ inputs[:, start : start + STRIP]
    return sums.tril() + sums.tril(-1).T


def moments_count(width: int) -> int:
    """How many sums `second_moments` computes for ``width`` columns."""
    return sum((width - start) * min(STRIP, width - start) for start in range(0, width, STRIP))
