"""Measures the likelihood of tokens under a causal language model. All metrics on text are computed from it.

A convention is a list of windows and a sum over their scores. A window says which tokens are read, and how many at its
end are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.errors import InputError
from trials.evaluate.reading import Reading
from trials.losses.kl import chunk_tokens
from trials.losses.window_losses import BATCH_TOKENS

PROBE_TOKENS = 8


@dataclass(frozen=True)
class Window:
    """Tokens to be read. The last ``predicted`` are scored, each given all tokens before it in the window."""

    tokens: Sequence[int]
    predicted: int


@dataclass(frozen=True)
class Score:
    """The score of one window: the summed -ln p of its predicted tokens, and whether each one was the likeliest."""

    nats: float
    greedy: bool


@dataclass(frozen=True)
class Measurement:
    """Windows to be scored, and the function that turns their scores, in the same order, into readings."""

    windows: Sequence[Window]
    readings: Callable[[Sequence[Score]], list[Reading]]

    @property
    def tokens(self) -> int:
        """The number of tokens in all windows."""
        return sum(len(window.tokens) for window in self.windows)


@torch.inference_mode()
def score(
    model: PreTrainedModel, windows: Sequence[Window], advance: Callable[[int], None] = lambda _: None
) -> list[Score]:
    """The score of every window, in order. ``advance`` is called with the number of tokens of each batch.

    The model runs in its own dtype; softmax is in float32 and sums are in float64. Logits are computed for
    `chunk_tokens` tokens at a time. A model that changes its logits after the output projection does not allow this;
    it processes one window at a time.

    Raises InputError when a likelihood is NaN.
    """
    model.eval()
    reader = _reader(model)
    scores: dict[int, Score] = {}
    for places in _batches(windows, BATCH_TOKENS[model.device.type] if reader.chunked else 1):
        batch = [windows[place] for place in places]
        scores.update(zip(places, _score_batch(model, reader, batch), strict=True))
        advance(sum(len(window.tokens) for window in batch))
    return [scores[place] for place in range(len(windows))]


@dataclass(frozen=True)
class _Reader:
    """``read`` maps tokens (B, T) to states (B, T, ...); ``project`` maps rows of states to logits (n, vocab)."""

    read: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    vocabulary: int
    chunked: bool


def _reader(model: PreTrainedModel) -> _Reader:
    """A reader that computes states first and logits in chunks, if a probe shows that this gives the model's logits.

    Some families scale or cap their logits after the output projection. They fail the probe, and their reader computes
    whole logits.
    """

    def states(tokens: Tensor) -> Tensor:
        hidden: Tensor = model.base_model(input_ids=tokens, use_cache=False)[0]
        return hidden

    def logits(tokens: Tensor) -> Tensor:
        output: Tensor = model(input_ids=tokens, use_cache=False).logits
        return output

    probe = torch.arange(PROBE_TOKENS, device=model.device)[None]
    expected, head = logits(probe), model.get_output_embeddings()
    vocabulary = expected.shape[-1]
    if head is not None and model.base_model is not model:
        hidden = states(probe)
        if hidden.shape[-1] == head.weight.shape[1] and torch.equal(head(hidden).to(expected.dtype), expected):
            return _Reader(states, head, vocabulary, chunked=True)
    return _Reader(logits, lambda rows: rows, vocabulary, chunked=False)


def _batches(windows: Sequence[Window], limit: int) -> Iterator[list[int]]:
    """Batches of window numbers, sorted by length: at most ``limit`` tokens with padding, and at least one window."""
    batch: list[int] = []
    for place in sorted(range(len(windows)), key=lambda place: len(windows[place].tokens)):
        if batch and (len(batch) + 1) * len(windows[place].tokens) > limit:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _score_batch(model: PreTrainedModel, reader: _Reader, windows: Sequence[Window]) -> list[Score]:
    tokens, predicted = _padded(windows, model.device)
    states, targets = reader.read(tokens[:, :-1])[predicted], tokens[:, 1:][predicted]
    nats = torch.zeros(len(windows), dtype=torch.float64, device=model.device)
    missed = torch.zeros(len(windows), dtype=torch.int64, device=model.device)
    chunk = chunk_tokens(reader.vocabulary, model.device.type)
    parts = (torch.split(part, chunk) for part in (states, targets, predicted.nonzero()[:, 0]))
    for own, target, rows in zip(*parts, strict=True):
        logits = reader.project(own).float()
        nats.index_add_(0, rows, F.cross_entropy(logits, target, reduction="none").double())
        missed.index_add_(0, rows, (logits.argmax(-1) != target).long())
    if nats.isnan().any():
        raise InputError(
            f"model of type {model.config.model_type!r}: it gives NaN for a likelihood in {model.dtype}; its weights "
            "are damaged or its activations overflow; try --dtype float32"
        )
    return [Score(total, misses == 0) for total, misses in zip(nats.tolist(), missed.tolist(), strict=True)]


def _padded(windows: Sequence[Window], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (B, T), and a mask (B, T - 1) of the predicted ones among tokens[:, 1:].

    Padding is at the end, where it does not affect a causal model.
    """
    tokens = torch.zeros(len(windows), max(len(window.tokens) for window in windows), dtype=torch.int64)
    predicted = torch.zeros(tokens[:, 1:].shape, dtype=torch.bool)
    for row, window in enumerate(windows):
        last = len(window.tokens) - 1
        tokens[row, : last + 1] = torch.tensor(window.tokens)
        predicted[row, last - window.predicted : last] = True
    return tokens.to(device), predicted.to(device)


def total_nats(scores: Sequence[Score]) -> float:
    """The sum of nats over all ``scores``."""
    return math.fsum(score.nats for score in scores)
