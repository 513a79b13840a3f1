"""Sparse students: masks on the matrices of a model's layers, held or moved while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from search_spaces.compression import MATRICES, Quantization, Sparsity
from search_spaces.errors import InputError
from trials.compress.matrices import Matrix, layer_matrices
from trials.compress.pdp import NONE, SoftMask
from trials.compress.sparse_scores import Mask, layer_inputs, sparse_gpt


def level_at(sparsity: Sparsity, step: int, steps: int) -> float:
    """The share of the weights that is 0 in ``step`` (from 0) of ``steps``; -1 is before training.

    It rises by s (1 - (1 - x)^3) between the start and the end of the ramp (Zhu and Gupta, arXiv 1710.01878, equation
    1). With "pdp" it rises linearly until the warm-up is over. Without a ramp it is the full level from the beginning.
    """
    if sparsity.method == "pdp":
        warmup = sparsity.warmup * steps
        return sparsity.level * (min(1.0, (step + 1) / warmup) if warmup else 1.0)
    if not sparsity.end:
        return sparsity.level
    start, end = sparsity.start * steps, sparsity.end * steps
    if step < start:
        return 0.0
    done = min(1.0, (step - start) / (end - start)) if end > start else 1.0
    return sparsity.level * (1 - (1 - done) ** 3)


class Sparsifier:
    """The masks of a student, as parametrizations of its matrices, and how they move while it trains.

    In every step call `before_step`, then compute gradients and let the optimizer step, then call `after_step`.
    Evaluate inside `hard`. After the last step call `harden`, and `bake` before the student is saved.

    All state that training changes is in the student's ``state_dict``. A run that is resumed calls `sparsify` on the
    same fresh student again and then loads the state.
    """

    def __init__(self, masks: Sequence[tuple[nn.Module, Mask]], sparsity: Sparsity, hardened: bool = False) -> None:
        self.masks, self.sparsity, self.hardened = masks, sparsity, hardened

    @property
    def level(self) -> float:
        """The share of the weights that is to be 0 at present."""
        gone = sum(int(mask.gone) for _, mask in self.masks)
        return gone / sum(mask.mask.numel() for _, mask in self.masks)

    @torch.no_grad()
    def before_step(self, step: int, steps: int) -> None:
        """Move the masks to the level of ``step`` (from 0) of ``steps``. It depends on these and the weights alone."""
        level = level_at(self.sparsity, step, steps)
        soft = self.sparsity.method == "pdp"
        if self.hardened or (not soft and level == level_at(self.sparsity, step - 1, steps)):
            return
        for module, mask in self.masks:
            mask.update(_stored(module), level)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep masked weights at 0, whatever the step of ``optimizer`` did to them. Soft masks hold nothing."""
        for module, mask in self.masks:
            weight = _stored(module)
            mask.after_step(weight, optimizer.state.get(weight, {}))

    @torch.no_grad()
    def harden(self) -> None:
        """Set hard masks at the final level for good. Afterwards `measured_sparsity` is that level."""
        if self.hardened:
            return
        for module, mask in self.masks:
            weight = _stored(module)
            gone = round(self.sparsity.level * weight.numel())
            if isinstance(mask, SoftMask) or gone != int(mask.gone):
                mask.choose(weight, gone)
            if isinstance(mask, SoftMask):
                mask.hard = True
        self.hardened = True

    @contextmanager
    def hard(self) -> Iterator[None]:
        """While open, the student computes with the hard masks of the present level. Do not train inside."""
        soft = [(module, mask) for module, mask in self.masks if isinstance(mask, SoftMask) and not mask.hard]
        with torch.no_grad():
            for module, mask in soft:
                mask.choose(_stored(module), int(mask.gone))
                mask.hard = True
        try:
            yield
        finally:
            for _, mask in soft:
                mask.hard = False


def sparsify(
    student: PreTrainedModel, sparsity: Sparsity, windows: NDArray[np.integer], quantization: Quantization = NONE
) -> Sparsifier:
    """Put masks for ``sparsity`` on the matrices of ``student``, and set weights to 0 if that is before training.

    Make the optimizer afterwards. ``windows`` (n, T; token ids) are calibration text for "wanda" and "sparsegpt". These
    go through the layers one after the other: each is measured behind layers that are sparse already. The masks
    of "pdp" see the weights after their ``quantization``.

    Raises InputError when a matrix does not allow 2:4.
    """
    matrices = layer_matrices(student, sparsity.matrices)
    if sparsity.kind == "2:4":
        _check_fours(matrices)
    soft = sparsity.method == "pdp"
    masks = {one: SoftMask(one, sparsity, quantization) if soft else Mask(one, sparsity) for one in matrices}
    for one, mask in masks.items():
        parametrize.register_parametrization(one.module, "weight", mask)
    with torch.no_grad():
        if sparsity.method in ("wanda", "sparsegpt"):
            _calibrate(student, sparsity, torch.from_numpy(windows.astype(np.int64)), masks)
        else:
            for one, mask in masks.items():
                mask.update(_stored(one.module), level_at(sparsity, -1, 1))
    return Sparsifier([(one.module, mask) for one, mask in masks.items()], sparsity)


def _calibrate(student: PreTrainedModel, sparsity: Sparsity, windows: Tensor, masks: dict[Matrix, Mask]) -> None:
    """Choose ``masks`` from the inputs of the matrices on ``windows``."""
    second_order = sparsity.method == "sparsegpt"
    for group, moments in layer_inputs(student, windows, list(masks), products=second_order):
        for one in group:
            mask, weight = masks[one], _stored(one.module)
            if second_order:
                gone = round(sparsity.level * weight.numel())
                updated, stay = sparse_gpt(mask.turned(weight), moments, gone, sparsity.kind)
                weight.copy_(mask.turned(updated))
                mask.mask.copy_(mask.turned(stay))
                mask.gone.fill_(gone)
            else:
                assert mask.scale is not None
                mask.scale.copy_(moments.sqrt())
                mask.update(weight, level_at(sparsity, -1, 1))


def _check_fours(matrices: Sequence[Matrix]) -> None:
    """Raise InputError for a matrix whose number of inputs is no multiple of 4."""
    for one in matrices:
        if (inputs := one.weight.shape[1]) % 4:
            raise InputError(
                f"sparsity.kind '2:4': {one.name} has {inputs} inputs, which is no multiple of 4; choose sizes that "
                "are multiples of 4, or unstructured"
            )


@torch.no_grad()
def held(student: PreTrainedModel, sparsity: Sparsity) -> Sparsifier:
    """Masks that hold the zeros of ``student``, for later training of a sparse student. They never move."""
    masks: list[tuple[nn.Module, Mask]] = []
    for one in layer_matrices(student, sparsity.matrices):
        mask = Mask(one, sparsity)
        mask.mask.copy_(mask.turned(one.weight) != 0)
        mask.gone.copy_((~mask.mask).sum())
        parametrize.register_parametrization(one.module, "weight", mask)
        masks.append((one.module, mask))
    return Sparsifier(masks, sparsity, hardened=True)


def bake(student: PreTrainedModel) -> None:
    """Remove all masks; the weights that the model computes with become plain parameters."""
    for one in layer_matrices(student):
        if parametrize.is_parametrized(one.module, "weight"):
            parametrize.remove_parametrizations(one.module, "weight", leave_parametrized=True)


@torch.no_grad()
def measured_sparsity(student: PreTrainedModel, parts: Iterable[str] = MATRICES) -> float:
    """The share of the weights of the layers' matrices that is 0, counted in the weights that the model computes with.

    ``parts`` are the parts of a layer that count.
    """
    weights = [one.weight for one in layer_matrices(student, parts)]
    return sum(int((one == 0).sum()) for one in weights) / sum(one.numel() for one in weights)


def _stored(module: nn.Module) -> Tensor:
    """The parameter under the mask of ``module``."""
    return module.get_parameter("parametrizations.weight.original")
