"""Second moments of what the output projections of a teacher read: all that `trials.refit` needs to know of text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HEADS, MLP = "heads", "mlp"


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and second moments of one teacher's activations over calibration tokens, float32, by layer.

    ``heads_mean`` (L, n) and ``heads`` (L, n, n) are E[x] and E[x x^T] of the concatenated heads, n = A * head_dim,
    which the attention output projection reads; ``mlp_mean`` (L, M) and ``mlp`` (L, M, M) those of the MLP neurons
    after the activation, which the second matrix of the MLP reads.
    """

    heads_mean: NDArray[np.float32]
    heads: NDArray[np.float32]
    mlp_mean: NDArray[np.float32]
    mlp: NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path) -> Moments:
        """What `MomentSums.save` wrote, mapped into memory: a layer is read when it is asked for."""
        names = (_mean(HEADS), HEADS, _mean(MLP), MLP)
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


@dataclass
class MomentSums:
    """Running float32 sums over the tokens of calibration windows, on the device where the activations are."""

    counts: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    firsts: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    seconds: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def add(self, kind: str, layer: int, inputs: Tensor, mask: Tensor) -> None:
        """Count ``inputs`` (B, T, n) of the projection ``kind`` of ``layer`` where ``mask`` (B, T) is True."""
        rows, place = inputs[mask].float(), (kind, layer)
        if place not in self.seconds:
            size = rows.shape[1]
            self.counts[place] = torch.zeros((), dtype=torch.int64, device=rows.device)
            self.firsts[place] = torch.zeros(size, device=rows.device)
            self.seconds[place] = torch.zeros(size, size, device=rows.device)
        self.counts[place] += len(rows)
        self.firsts[place] += rows.sum(dim=0)
        self.seconds[place].addmm_(rows.T, rows)

    def save(self, folder: Path) -> None:
        """Write the moments into ``folder`` for `Moments.load`, one layer at a time."""
        for kind in (HEADS, MLP):
            layers = sorted(layer for name, layer in self.seconds if name == kind)
            for name, sums in ((_mean(kind), self.firsts), (kind, self.seconds)):
                shape = (len(layers), *sums[kind, 0].shape)
                array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
                for layer in layers:
                    array[layer] = (sums[kind, layer] / self.counts[kind, layer]).cpu().numpy()
                array.flush()


def _mean(kind: str) -> str:
    return f"{kind}_mean"
