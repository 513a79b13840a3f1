"""The losses of many students of one teacher that differ only in which layers they keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from trials.families.base import Family
from trials.losses.precision import autocast
from trials.losses.window_losses import BATCH_TOKENS, state_losses
from trials.prune.layer_order import Call, traced

Layers = tuple[int, ...]


@torch.no_grad()
def subset_losses(
    model: PreTrainedModel,
    family: Family,
    windows: NDArray[np.integer],
    subsets: Iterable[Sequence[int]],
    batch: int | None = None,
) -> dict[Layers, NDArray[np.float64]]:
    """The loss of ``model`` with each of ``subsets`` of its layers alone, on each of ``windows`` (n, length); (n,).

    A subset holds numbers of layers, ascending, at least one. Its losses are those of
    `trials.losses.window_losses.window_losses` for a slice of these layers (`trials.prune.prune`), in nats per
    predicted token.

    Subsets that begin with the same layers share their computation. The subsets are a prefix tree, and a layer runs
    once for each node of it. All 2^L - 1 subsets of L layers take 2^L - 1 layer runs instead of L * 2^(L - 1). The
    output projection runs once for each subset in both.
    """
    device, tree = model.device.type, _tree(subsets)
    batch = batch or max(1, BATCH_TOKENS[device] // windows.shape[1])
    losses: dict[Layers, list[Tensor]] = {}
    model.eval()
    for start in range(0, len(windows), batch):
        tokens = torch.from_numpy(windows[start : start + batch].astype(np.int64)).to(model.device)
        with torch.autocast(device, enabled=False) if device == "cpu" else autocast(device):
            for subset, stream in _walk(tree, *_entered(model, family, tokens)):
                states = family.norms(model)[-1](stream)
                own = state_losses(states, family.output_weight(model), tokens).double().mean(dim=1)
                losses.setdefault(subset, []).append(own)
    return {subset: torch.cat(parts).cpu().numpy() for subset, parts in losses.items()}


@dataclass
class _Node:
    """The subsets that begin with the layers on the way to this node. ``ends`` says whether these are one of them."""

    ends: bool = False
    behind: dict[int, _Node] = field(default_factory=dict)


def _tree(subsets: Iterable[Sequence[int]]) -> _Node:
    root = _Node()
    for subset in subsets:
        node = root
        for layer in subset:
            node = node.behind.setdefault(layer, _Node())
        node.ends = True
    return root


def _entered(model: PreTrainedModel, family: Family, tokens: Tensor) -> tuple[list[Call], Tensor]:
    """The calls of all layers for ``tokens`` (B, T), and the stream (B, T, hidden) in front of the first."""
    calls, streams = traced(family.layers(model), lambda: family.backbone(model, tokens))
    return calls, streams[0]


def _walk(node: _Node, calls: Sequence[Call], stream: Tensor, way: Layers = ()) -> Iterator[tuple[Layers, Tensor]]:
    """Each subset below ``node``, with the stream behind its last layer. ``stream`` is the one behind ``way``."""
    if node.ends:
        yield way, stream
    for layer, following in node.behind.items():
        yield from _walk(following, calls, calls[layer](stream), (*way, layer))
