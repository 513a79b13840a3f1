"""Ranks layers for removal.

The search removes one layer at a time and always takes the one whose removal raises the loss least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from trials.families.base import Family
from trials.losses.precision import autocast
from trials.losses.window_losses import state_losses
from trials.storage.progress import counted

TOKENS = 2_048  # at most; docs/lab/layers.md


def removal_losses(model: PreTrainedModel, family: Family, windows: Tensor) -> NDArray[np.float32]:
    """For each of L layers, the loss of ``model`` without it and without all layers removed before it; (L,).

    The loss is in mean nats per token, on the first windows of ``windows`` (n, T; token ids) up to `TOKENS` tokens, at
    least one window, in the device's training dtype.

    The order is greedy: the next layer to go is the one whose removal gives the lowest loss. Losses are made strictly
    increasing in the order of removal, so that a student of any depth keeps the layers with the highest values.

    Two shortcuts save work. The layers before a candidate are not computed again. A candidate is skipped when its loss
    increase at its last trial was no smaller than the best found so far, because increases are assumed not to shrink
    while layers are removed (accelerated greedy, Minoux 1978).

    Greedy removal by the loss follows SLEB (arXiv 2402.09025). Shortened LLaMA (arXiv 2402.02834) uses the same
    criterion once for all layers.
    """
    tokens = windows[: max(1, TOKENS // windows.shape[1])].to(model.device)
    with autocast(model.device.type):
        remover = _Remover(model, family, tokens)
        for _ in counted(range(len(remover.kept)), len(remover.kept), "layers are ranked"):
            remover.remove_one()
    losses, last = np.empty(len(remover.gone), np.float32), np.float32(-np.inf)
    for layer, loss in remover.gone:
        last = max(np.float32(loss), np.nextafter(last, np.float32(np.inf)))
        losses[layer] = last
    return losses


@dataclass
class Call:
    """A layer with the arguments of its call by the model, except the stream."""

    layer: nn.Module
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def __call__(self, stream: Tensor) -> Tensor:
        output: Tensor = self.layer(stream, *self.arguments, **self.options)
        return output


class _Remover:
    """The state of the search: the layers ``kept``, their inputs ``streams``, and ``gone``, pairs (layer, loss)."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, family: Family, tokens: Tensor) -> None:
        self.tokens, self.norm, self.weight = tokens, family.norms(model)[-1], family.output_weight(model)
        self.calls, self.streams = traced(family.layers(model), lambda: family.backbone(model, tokens))
        self.kept = list(range(len(self.calls)))
        self.loss = self._loss_of(self.calls[-1](self.streams[-1]))
        self.added = dict.fromkeys(self.kept, -np.inf)  # loss increase without each layer, when it was last tried
        self.gone: list[tuple[int, float]] = []

    @torch.inference_mode()
    def remove_one(self) -> None:
        """Remove the layer whose removal gives the lowest loss; the earlier of equal ones."""
        found: dict[int, float] = {}
        for layer in sorted(self.kept, key=self.added.__getitem__):
            if found and min(found.values()) <= self.loss + self.added[layer]:
                break
            found[layer] = self._loss_of(self._after(self.kept.index(layer)))
            self.added[layer] = found[layer] - self.loss
        self.loss, out = min((loss, layer) for layer, loss in found.items())
        self.gone.append((out, self.loss))
        place = self.kept.index(out)
        self._after(place, keep=True)
        del self.kept[place], self.streams[place]

    def _after(self, place: int, keep: bool = False) -> Tensor:
        """The stream after the last layer, without the layer at ``place``. ``keep`` stores the new layer inputs."""
        stream = self.streams[place]
        for behind in range(place + 1, len(self.kept)):
            if keep:
                self.streams[behind] = stream
            stream = self.calls[self.kept[behind]](stream)
        return stream

    def _loss_of(self, stream: Tensor) -> float:
        return float(state_losses(self.norm(stream), self.weight, self.tokens).double().mean())


def traced(layers: Sequence[nn.Module], run: Callable[[], object]) -> tuple[list[Call], list[Tensor]]:
    """The calls of ``layers`` in ``run``, and the input stream (n, T, H) of each."""
    calls: list[Call] = []
    streams: list[Tensor] = []

    def hook(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append(Call(layer, arguments[1:], options))
        streams.append(arguments[0])

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, streams
