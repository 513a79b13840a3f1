"""Compresses the weights of a student while it trains: sparse masks, and the rounding of a quantization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from transformers import PreTrainedModel

from search_spaces.compression import Adapters, Compression, Quantization
from search_spaces.errors import InputError
from trials.compress.adapters import ADAPTER_RATE, merged, prune_adapters, with_adapters
from trials.compress.matrices import Matrix, layer_matrices
from trials.compress.quantize import rounded
from trials.compress.sparsify import Sparsifier, bake, held, sparsify

CALIBRATION = 16_384  # tokens of training text for the scores of sparsity
REFRESH_STEPS = 8  # optimizer steps that train with the same rounding errors; a weight hardly moves in them


class Rounding(nn.Module):
    """A parametrization of one weight: adds the error of its quantization, so that a forward pass sees rounded weights.

    The error counts as a constant, so gradients pass straight through (arXiv 1308.3432). ``refresh`` computes it anew.
    """

    error: Tensor

    def __init__(self, weight: Tensor, quantization: Quantization, inputs_first: bool) -> None:
        super().__init__()
        self.quantization, self.inputs_first = quantization, inputs_first
        self.register_buffer("error", torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, if the error is up to date."""
        return weight + self.error

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Set the error to that of ``weight``, which is in the stored layout."""
        matrix = weight.T if self.inputs_first else weight
        error = rounded(matrix, self.quantization) - matrix
        self.error.copy_(error.T if self.inputs_first else error)


class Compressor:
    """What `trials.distill.distill` calls while it trains a student whose weights are compressed."""

    def __init__(
        self, student: PreTrainedModel, sparsifier: Sparsifier | None, quantization: Quantization, adapters: Adapters
    ) -> None:
        self.student, self.sparsifier, self.adapters = student, sparsifier, adapters
        self.rounded = [] if quantization.scheme == "none" else layer_matrices(student, quantization.matrices)
        for matrix in self.rounded:
            rounding = Rounding(_original(matrix), quantization, matrix.inputs_first)
            parametrize.register_parametrization(matrix.module, "weight", rounding)
        if adapters.rank:
            with_adapters(student, adapters)
            prune_adapters(student, 0)  # nothing yet; but a checkpoint holds their masks from the first step on

    def before_step(self, step: int, steps: int) -> None:
        """Prepare the forward passes of ``step`` (from 0) of ``steps``."""
        if self.sparsifier:
            self.sparsifier.before_step(step, steps)
        if step % REFRESH_STEPS == 0:
            self._refresh()
        if self.adapters.sparsity and step == steps // 2:
            prune_adapters(self.student, self.adapters.sparsity)

    def after_step(self, optimizer: Optimizer) -> None:
        """Do what follows a step of the ``optimizer``."""
        if self.sparsifier:
            self.sparsifier.after_step(optimizer)

    @contextmanager
    def measured(self, step: int, steps: int) -> Iterator[None]:
        """While open, forward passes see the weights that would be exported after ``step`` steps of ``steps``."""
        if self.sparsifier:
            self.sparsifier.before_step(step, steps)
            if step == steps:
                self.sparsifier.harden()
        with self.sparsifier.hard() if self.sparsifier else nullcontext():
            self._refresh()
            with parametrize.cached():
                yield

    @torch.no_grad()
    def leave(self) -> None:
        """Remove everything from the student. Its weights keep their zeros, and adapters are added to them.

        They are not rounded: `round_weights` does that, and codes are made from weights that are not.
        """
        if self.adapters.rank:
            merged(self.student)
        for matrix in self.rounded:
            _parametrizations(matrix)[-1].error.zero_()
        bake(self.student)

    def _refresh(self) -> None:
        for matrix in self.rounded:
            *before, rounding = _parametrizations(matrix)
            weight = _original(matrix).detach()
            for one in before:
                weight = one(weight)
            rounding.refresh(weight)


def compressor(
    student: PreTrainedModel, compression: Compression, windows: NDArray[np.integer], *, trained: bool = False
) -> Compressor | None:
    """Begin to compress ``student`` in place; None when nothing is to be done.

    ``windows`` (n, T) are tokens for the scores of sparsity; the first `CALIBRATION` are used. A ``trained`` student
    keeps the zeros that it has.

    Raises InputError when a library is not installed, when a matrix does not allow 2:4, and when adapters are combined
    with something else.
    """
    if not compression:
        return None
    if compression.adapters.rank and not compression.mergeable:
        raise InputError(
            "adapters: are merged into the weights, which would undo sparsity and quantization; leave one of them out"
        )
    sparsifier = None
    if compression.sparsity.level:
        count = max(1, CALIBRATION // windows.shape[1])
        how = compression.sparsity
        sparsifier = (
            held(student, how) if trained else sparsify(student, how, windows[:count], compression.quantization)
        )
    return Compressor(student, sparsifier, compression.quantization, compression.adapters)


def rate_of(compression: Compression) -> float:
    """What the learning rate of the recipe is multiplied by while a student with ``compression`` trains."""
    return compression.sparsity.rate * (ADAPTER_RATE if compression.adapters.rank else 1)


def text_share_of(compression: Compression, text_share: float) -> float:
    """The share of the text's cross-entropy in the loss that a student with ``compression`` trains by.

    It is the ``text_share`` of the recipe, and all of the loss without distillation.
    """
    return text_share if compression.sparsity.distilled else 1.0


@torch.no_grad()
def round_weights(student: PreTrainedModel, compression: Compression) -> None:
    """Round the weights of ``student`` in place as its quantization does."""
    if compression.quantization.scheme != "none":
        for matrix in layer_matrices(student, compression.quantization.matrices):
            matrix.weight.copy_(rounded(matrix.weight, compression.quantization))


def _original(matrix: Matrix) -> nn.Parameter:
    """The weight in the stored layout, as it is before all parametrizations."""
    parametrized = parametrize.is_parametrized(matrix.module, "weight")
    return matrix.module.get_parameter("parametrizations.weight.original" if parametrized else "weight")


def _parametrizations(matrix: Matrix) -> list[Any]:
    """The parametrizations of a weight, in the order in which they are applied."""
    return list(matrix.module.get_submodule("parametrizations.weight").children())
