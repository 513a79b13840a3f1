"""Which layers can go: one after another, each time the one without which the loss rises least."""

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

TOKENS = 2_048  # at most; docs/results.md


def removal_losses(model: PreTrainedModel, family: Family, windows: Tensor) -> NDArray[np.float32]:
    """For each of L layers, the loss of ``model`` when it has gone as well as all that go before it; (L,).

    In mean nats per token of ``windows`` (n, T), token ids, of which as many are read as make `TOKENS`, at least one,
    in the format in which the device trains.
    The order is greedy: of the layers that are left, the one without which the loss is lowest goes next. A loss that
    is lower than that of fewer layers gone is raised to just above it, so that the order of the numbers is that in
    which layers go, and of any depth the layers with the highest stay.

    Nothing in front of a candidate is computed anew for it. And not all that are left are candidates: what a layer
    adds to the loss when it goes is taken to be at least what it added when it was last tried, with more layers there,
    so that those which even then were worse than the best so far need not be tried again (accelerated greedy, Minoux
    1978). Greedy removal by the loss is SLEB's (arXiv 2402.09025), and Shortened LLaMA (2402.02834) has it in one shot.
    """
    tokens = windows[: max(1, TOKENS // windows.shape[1])].to(model.device)
    with autocast(model.device.type):
        remover = _Remover(model, family, tokens)
        while remover.kept:
            remover.remove_one()
    losses, last = np.empty(len(remover.gone), np.float32), np.float32(-np.inf)
    for layer, loss in remover.gone:
        last = max(np.float32(loss), np.nextafter(last, np.float32(np.inf)))
        losses[layer] = last
    return losses


@dataclass
class _Call:
    """How the model calls a layer: everything but the stream."""

    layer: nn.Module
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def __call__(self, stream: Tensor) -> Tensor:
        output: Tensor = self.layer(stream, *self.arguments, **self.options)
        return output


class _Remover:
    """The layers that are ``kept``, what each reads, and those ``gone`` with the loss from then on."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, family: Family, tokens: Tensor) -> None:
        self.tokens, self.norm, self.weight = tokens, family.norms(model)[-1], family.output_weight(model)
        self.calls, self.streams = _traced(family.layers(model), lambda: family.backbone(model, tokens))
        self.kept = list(range(len(self.calls)))
        self.loss = self._loss_of(self.calls[-1](self.streams[-1]))
        self.added = dict.fromkeys(self.kept, -np.inf)  # to the loss by each, when it was last tried
        self.gone: list[tuple[int, float]] = []

    @torch.inference_mode()
    def remove_one(self) -> None:
        """Take out the layer without which the loss is lowest; of equal ones the earlier."""
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
        """The stream behind the last layer without the one at ``place``; ``keep`` what the layers behind it read."""
        stream = self.streams[place]
        for behind in range(place + 1, len(self.kept)):
            if keep:
                self.streams[behind] = stream
            stream = self.calls[self.kept[behind]](stream)
        return stream

    def _loss_of(self, stream: Tensor) -> float:
        return float(state_losses(self.norm(stream), self.weight, self.tokens).double().mean())


def _traced(layers: Sequence[nn.Module], run: Callable[[], object]) -> tuple[list[_Call], list[Tensor]]:
    """How ``run`` calls each of ``layers``, and the stream (n, T, H) that each reads."""
    calls: list[_Call] = []
    streams: list[Tensor] = []

    def watch(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append(_Call(layer, arguments[1:], options))
        streams.append(arguments[0])

    handles = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, streams
