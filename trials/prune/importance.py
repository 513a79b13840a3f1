"""Scores the importance of the teacher's layers, hidden channels, heads and MLP neurons on calibration text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from search_spaces.errors import InputError
from trials.families.base import Family
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.prune.head_order import head_losses
from trials.prune.layer_order import removal_losses
from trials.prune.neuron_order import elimination_losses
from trials.storage.cache import Cache, digest
from trials.teacher.teacher import Teacher

log = logging.getLogger(__name__)

SCORING_VERSION = 5  # part of the cache key: raise it whenever a score changes
SCORES_FILE = "scores.npz"
BATCH = 4  # windows in one forward pass; bounds memory, changes no score


@dataclass(frozen=True, eq=False)
class ImportanceScores:
    """The importance scores of one teacher, float32; a higher score is more important.

    Shapes: ``layers`` (L,), ``hidden`` (H,), ``heads`` (L, A), ``mlp`` (L, M). ``hidden`` is one ranking for the whole
    network. `compute_importance` gives Minitron's scores; `load_importance` gives those that a search uses.
    """

    layers: NDArray[np.float32]
    hidden: NDArray[np.float32]
    heads: NDArray[np.float32]
    mlp: NDArray[np.float32]

    @property
    def key(self) -> str:
        """A digest of the scores."""
        return digest(*(array.tobytes() for array in (self.layers, self.hidden, self.heads, self.mlp)))

    def save(self, path: Path) -> None:
        """Write all four arrays to one ``.npz`` file."""
        np.savez(path, **{one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def load(cls, path: Path) -> ImportanceScores:
        """The inverse of `save`."""
        with np.load(path) as arrays:
            return cls(**{one.name: arrays[one.name] for one in fields(cls)})


@torch.inference_mode()
def compute_importance(
    model: PreTrainedModel, family: Family, windows: Tensor, mask: Tensor | None = None, batch: int = BATCH
) -> ImportanceScores:
    """Minitron's activation scores (arXiv 2407.14679, section 2.2; mean over tokens, L2 over windows).

    ``windows`` (n, T) are token ids. ``mask`` (n, T) is False at padding, which is not counted. For windows b with T_b
    real tokens t,

        score_i = sqrt( sum_b ( 1/T_b * sum_t |a_bti| )^2 ),

    where a_bti is

    - for hidden channel i: the output of a norm; the scores of all norms of the network are summed;
    - for MLP neuron i: its activation, which is the input of the MLP output projection;
    - for head i: the L2 norm of its output, which is the input of the attention output projection.

    The score of a layer is its Block Importance, 1 - E_bt[cos(layer input, layer output)].

    ``model`` must be in eval mode. Raises InputError when a score is not finite.
    """
    real = torch.ones_like(windows, dtype=torch.bool) if mask is None else mask.bool()
    collector = _Collector(shape_of(model.config).head_dim)
    with _hooked(model, family, collector):
        for start in range(0, len(windows), batch):
            part = slice(start, start + batch)
            collector.mask = real[part].to(model.device)
            family.backbone(model, windows[part].to(model.device), None if mask is None else collector.mask)
    return collector.scores(len(family.layers(model)))


def load_importance(teacher: Teacher, windows: NDArray[np.integer], cache: Cache) -> tuple[ImportanceScores, bool]:
    """The scores of ``teacher`` on calibration ``windows`` (n, T), and whether they came from the cache.

    Layers are scored by `trials.prune.layer_order.removal_losses`, heads by `trials.prune.head_order.head_losses` and
    neurons by `trials.prune.neuron_order.elimination_losses`, because these scores give better students than Minitron's
    (docs/lab/layers.md, docs/lab/heads-and-neurons.md). The other scores are those of `compute_importance`.
    """
    tokens = np.ascontiguousarray(windows, dtype=np.int64)
    key = digest(teacher.fingerprint, *tokens.shape, tokens.tobytes(), SCORING_VERSION)
    computed: list[ImportanceScores] = []

    def write(folder: Path) -> None:
        family, text = family_of(teacher.model.config), torch.from_numpy(tokens)
        log.info("scoring hidden channels on %s tokens", f"{text.numel():,}")
        scores = compute_importance(teacher.model, family, text)
        log.info("ranking the %d heads of each layer for removal", teacher.shape.heads)
        heads = head_losses(teacher.model, family, text, teacher.shape.head_dim)
        log.info("ranking %d layers for removal", teacher.shape.layers)
        layers = removal_losses(teacher.model, family, text)
        log.info("ranking the %s neurons of each layer for removal", f"{teacher.shape.mlp:,}")
        mlp = elimination_losses(teacher.model, family, text)
        computed.append(replace(scores, layers=layers, heads=heads, mlp=mlp))
        computed[0].save(folder / SCORES_FILE)

    folder = cache.build("importance", key, write)
    return ImportanceScores.load(folder / SCORES_FILE), not computed


@dataclass
class _Collector:
    """Running sums over windows: one float32 tensor for each hooked module."""

    head_dim: int
    mask: Tensor = field(default_factory=lambda: torch.empty(0))
    squares: dict[str, Tensor] = field(default_factory=dict)  # sum over windows of the squared sequence means
    cosines: dict[str, Tensor] = field(default_factory=dict)  # sum over tokens
    tokens: dict[str, Tensor] = field(default_factory=dict)

    def add_norm(self, place: str, _: Tensor, channels: Tensor) -> None:
        """Add the outputs (B, T, H) of a norm."""
        self._add(place, channels.float().abs())

    def add_heads(self, place: str, heads: Tensor, _: Tensor) -> None:
        """Add the norm of each head from the inputs (B, T, A * head_dim) of an attention output projection."""
        self._add(place, heads.float().reshape(*heads.shape[:2], -1, self.head_dim).norm(dim=-1))

    def add_mlp(self, place: str, neurons: Tensor, _: Tensor) -> None:
        """Add the inputs (B, T, M) of an MLP's output projection."""
        self._add(place, neurons.float().abs())

    def add_layer(self, place: str, before: Tensor, after: Tensor) -> None:
        """Add the cosines between the inputs and the outputs (B, T, H) of a layer."""
        cosines = cosine_similarity(before.float(), after.float(), dim=-1)
        _accumulate(self.cosines, place, cosines.masked_fill(~self.mask, 0).sum())
        _accumulate(self.tokens, place, self.mask.sum())

    def _add(self, place: str, magnitudes: Tensor) -> None:
        lengths = self.mask.sum(dim=1, keepdim=True).clamp(min=1)
        means = magnitudes.masked_fill(~self.mask[..., None], 0).sum(dim=1) / lengths
        _accumulate(self.squares, place, means.square().sum(dim=0))

    def scores(self, layers: int) -> ImportanceScores:
        """The scores from the sums so far. Raises InputError when one is not finite."""
        norms = [total.sqrt() for place, total in self.squares.items() if place.startswith("norm")]
        block = [1 - self.cosines[f"layer {layer}"] / self.tokens[f"layer {layer}"] for layer in range(layers)]
        scores = ImportanceScores(
            layers=_array(torch.stack(block)),
            hidden=_array(torch.stack(norms).sum(dim=0)),
            heads=_array(torch.stack([self.squares[f"heads {layer}"].sqrt() for layer in range(layers)])),
            mlp=_array(torch.stack([self.squares[f"mlp {layer}"].sqrt() for layer in range(layers)])),
        )
        for one in fields(scores):
            if not np.isfinite(getattr(scores, one.name)).all():
                raise InputError(f"teacher: its {one.name} importance is not finite; check the model's weights")
        return scores


def _accumulate(sums: dict[str, Tensor], place: str, value: Tensor) -> None:
    sums[place] = sums[place] + value if place in sums else value


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


@contextmanager
def _hooked(model: PreTrainedModel, family: Family, collector: _Collector) -> Iterator[None]:
    """While this context is open, ``collector`` receives the activations of every forward pass of ``model``."""
    handles = [
        _hook(norm, partial(collector.add_norm, f"norm {number}")) for number, norm in enumerate(family.norms(model))
    ]
    for number, layer in enumerate(family.layers(model)):
        handles += [
            _hook(layer, partial(collector.add_layer, f"layer {number}")),
            _hook(family.attention_output(layer), partial(collector.add_heads, f"heads {number}")),
            _hook(family.mlp_output(layer), partial(collector.add_mlp, f"mlp {number}")),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, add: Callable[[Tensor, Tensor], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda _, inputs, output: add(inputs[0], output))
