"""The teacher's targets for the training text, computed once and read by every trial."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.shape import ModelShape
from trials.cache import Cache, digest
from trials.corpus import Corpus, windows
from trials.evaluate import BATCH_TOKENS
from trials.families import family_of
from trials.precision import autocast, training_precision
from trials.stored import Stored, create, to_array, to_tensor
from trials.teacher import Teacher

# Above this, unless told otherwise, the teacher reads each batch itself: 65,536 tokens of mini take 64 MiB, 10M of
# gpt2-medium 20 to 40 GB.
LIMIT_BYTES = 2 * 2**30

log = logging.getLogger(__name__)


class Targets:
    """What the student is to imitate: the teacher's final hidden states, from which its head makes the logits.

    Hidden states are exact and V / H times smaller than logits. ``stored`` arrays (windows, length, H), one after
    the other, are indexed like the windows of the training text; None means that the teacher reads every batch anew.
    """

    def __init__(self, teacher: Teacher, stored: Sequence[Stored] | None = None) -> None:
        self.teacher, self.stored = teacher, stored
        self.starts = np.cumsum([0, *map(len, stored or ())])
        self.family = family_of(teacher.model.config)

    def head(self) -> Tensor:
        """The teacher's output projection (V, H)."""
        return self.family.output_weight(self.teacher.model)

    @torch.no_grad()
    def hidden(self, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """The teacher's states (n * length, H) for windows number ``places`` (n,), whose ``tokens`` are (n, length)."""
        if self.stored is None:
            return self.family.backbone(self.teacher.model, tokens).flatten(0, 1)
        parts = np.searchsorted(self.starts, places, side="right") - 1
        rows = [self.stored[part][place - self.starts[part]] for part, place in zip(parts, places, strict=True)]
        return to_tensor(np.stack(rows)).to(tokens.device).flatten(0, 1)


def load_targets(
    teacher: Teacher, corpus: Corpus, length: int, cache: Cache, first: int = 0, way: str | None = None
) -> Targets:
    """Targets for ``corpus.train`` in windows of ``length``: from the cache or computed, unless they are not stored.

    The ``first`` windows are kept apart from the others: they are those of a shorter text, and found where it is.
    """
    device = teacher.model.device.type
    dtype, _ = training_precision(device)
    text = windows(corpus.train, length)
    if not are_stored(teacher.shape, text.size, device, way):
        return Targets(teacher)
    parts = (part for part in (text[:first], text[first:]) if len(part))
    return Targets(teacher, [_stored(teacher, part, dtype, cache) for part in parts])


def are_stored(shape: ModelShape, tokens: int, device: str, way: str | None = None) -> bool:
    """Whether the hidden states of ``tokens`` tokens are kept: as ``way`` says, or if None where they are few."""
    if way is not None:
        return way == "cached"
    dtype, _ = training_precision(device)
    return tokens * shape.hidden * dtype.itemsize <= LIMIT_BYTES


def _stored(teacher: Teacher, text: NDArray[np.integer], dtype: torch.dtype, cache: Cache) -> Stored:
    key = digest(teacher.fingerprint, str(dtype), *text.shape, np.ascontiguousarray(text).tobytes())
    folder = cache.build("targets", key, lambda empty: _write(empty, teacher, text, dtype))
    stored: Stored = np.load(folder / "hidden.npy", mmap_mode="r")
    return stored


def _write(folder: Path, teacher: Teacher, text: NDArray[np.integer], dtype: torch.dtype) -> None:
    log.info("computing the teacher's targets for %s tokens", f"{text.size:,}")
    online, device = Targets(teacher), teacher.model.device
    batch = max(1, BATCH_TOKENS[device.type] // text.shape[1])
    array = create(folder / "hidden.npy", dtype, (*text.shape, teacher.shape.hidden))
    for start in range(0, len(text), batch):
        part = text[start : start + batch]
        with autocast(device.type):
            states = online.hidden(np.empty(0, np.int64), torch.from_numpy(part.astype(np.int64)).to(device))
        array[start : start + batch] = to_array(states.reshape(*part.shape, -1), dtype)
    array.flush()
