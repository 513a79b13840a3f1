"""The teacher's targets for the training text: computed once, and used by every trial."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.shape import ModelShape
from trials.families.lookup import family_of
from trials.losses.kl import chunk_tokens, chunked_drawn_kl, chunked_kl, gradient_chunk_tokens
from trials.losses.precision import autocast, training_precision
from trials.losses.window_losses import BATCH_TOKENS
from trials.storage.activation_files import Stored, create, create_array, to_array, to_device, to_tensor
from trials.storage.cache import Cache, digest
from trials.storage.progress import counted
from trials.teacher.teacher import Teacher
from trials.text.corpus import Corpus, windows

# Final states are stored up to this size: 65,536 tokens of mini take 64 MiB, 10M of gpt2-medium take 20 to 40 GB.
LIMIT_BYTES = 2 * 2**30
PART_TOKENS = 2**20  # tokens in one cache entry; several workers can compute the parts of a text
DRAWS = 64  # tokens drawn from each distribution, when final states would be too large; docs/lab/targets.md

Way = Literal["cached", "drawn", "online"]
"""How students get the targets: see `way_for`."""

log = logging.getLogger(__name__)


class Targets:
    """The targets of distillation: the teacher's final hidden states. Its output projection turns them into logits.

    Hidden states are exact and V / H times smaller than logits. ``stored`` holds arrays (windows, length, H) that
    together follow the windows of the training text. If it is None, the teacher computes the states of every batch.
    """

    def __init__(self, teacher: Teacher, stored: Sequence[Stored] | None = None) -> None:
        self.teacher, self.stored = teacher, stored
        self.family = family_of(teacher.model.config)
        self._ahead = _Prefetch()

    def read_ahead(self, places: NDArray[np.int64]) -> None:
        """Start to load the stored targets of windows number ``places`` (n,), which `divergence` will need next."""
        self._ahead.begin(self._read, places)

    def head(self) -> Tensor:
        """The teacher's output projection (V, H)."""
        return self.family.output_weight(self.teacher.model)

    @torch.no_grad()
    def hidden(self, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """The teacher's final states (n * length, H) for windows number ``places`` (n,) with ``tokens`` (n, length)."""
        if self.stored is None:
            return self.family.backbone(self.teacher.model, tokens).flatten(0, 1)
        (states,) = self._ahead.take(self._read, places)
        return states.flatten(0, 1)

    def _read(self, places: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """The stored targets of windows number ``places``, on the teacher's device."""
        if self.stored is None:
            return ()
        return (to_device(to_tensor(_rows(self.stored, places)), self.teacher.model.device),)

    def divergence(self, hidden: Tensor, weight: Tensor, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """KL(teacher || student) in mean nats per token, differentiable.

        ``hidden`` (n * length, H_s) are the student's final states for windows number ``places`` (n,) with ``tokens``
        (n, length). ``weight`` (V, H_s) is its output projection.
        """
        chunk = gradient_chunk_tokens(weight.shape[0], weight.device.type)
        return chunked_kl(hidden, weight, self.hidden(places, tokens), self.head(), chunk)


class DrawnTargets(Targets):
    """Targets of `DRAWS` tokens drawn from each teacher distribution with replacement, for an unbiased KL estimate.

    ``ids`` holds arrays (windows, length, `DRAWS`) of drawn tokens. ``likelihoods`` holds arrays (windows, length) of
    their mean log-probabilities in nats. Together the arrays follow the windows of the training text.
    """

    def __init__(
        self, teacher: Teacher, ids: Sequence[NDArray[np.integer]], likelihoods: Sequence[NDArray[np.float32]]
    ) -> None:
        super().__init__(teacher)
        self.ids, self.likelihoods = ids, likelihoods

    def divergence(self, hidden: Tensor, weight: Tensor, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """An unbiased estimate of the KL; see `trials.losses.kl.chunked_drawn_kl`."""
        ids, likelihoods = self._ahead.take(self._read, places)
        chunk = gradient_chunk_tokens(weight.shape[0], weight.device.type)
        return chunked_drawn_kl(hidden, weight, ids.flatten(0, 1).long(), likelihoods.flatten(), chunk)

    def _read(self, places: NDArray[np.int64]) -> tuple[Tensor, ...]:
        ids, likelihoods = _rows(self.ids, places).astype(np.int32), _rows(self.likelihoods, places)
        return tuple(to_device(torch.from_numpy(one), self.teacher.model.device) for one in (ids, likelihoods))


Read = Callable[[NDArray[np.int64]], tuple[Tensor, ...]]


class _Prefetch:
    """Loads stored targets in a thread while the device works, if `begin` named the next windows."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "targets")
        self.begun: tuple[NDArray[np.int64], Future[tuple[Tensor, ...]]] | None = None

    def begin(self, read: Read, places: NDArray[np.int64]) -> None:
        self.begun = places, self.thread.submit(read, places)

    def take(self, read: Read, places: NDArray[np.int64]) -> tuple[Tensor, ...]:
        begun, self.begun = self.begun, None
        return begun[1].result() if begun and np.array_equal(begun[0], places) else read(places)


def load_targets(
    teacher: Teacher, corpus: Corpus, length: int, cache: Cache, first: int = 0, way: Way | None = None
) -> Targets:
    """Targets for ``corpus.train`` in windows of ``length``, of the kind that `way_for` chooses.

    Stored targets come from the cache or are computed now, in parts of `PART_TOKENS` tokens. The ``first`` windows have
    parts of their own. A corpus that is longer by finals' text can thus reuse the parts of the trials' text.
    """
    text = windows(corpus.train, length)
    way = way_for(teacher.shape, text.size, teacher.model.device.type, way)
    if way == "online":
        return Targets(teacher)
    kept = [_part(teacher, part, way, cache) for part in _parts(text, first)]
    if way == "cached":
        return Targets(teacher, [np.load(one / "hidden.npy", mmap_mode="r") for one in kept])
    ids = [np.load(one / "ids.npy", mmap_mode="r").reshape(-1, length, DRAWS) for one in kept]
    likelihoods = [np.load(one / "likelihoods.npy", mmap_mode="r").reshape(-1, length) for one in kept]
    return DrawnTargets(teacher, ids, likelihoods)


def stored_states(teacher: Teacher, text: NDArray[np.integer], cache: Cache) -> Stored:
    """The teacher's final states (n, length, H) for the windows ``text`` (n, length), from the cache or computed."""
    stored: Stored = np.load(_part(teacher, text, "cached", cache) / "hidden.npy", mmap_mode="r")
    return stored


def compute_share(
    teacher: Teacher, corpus: Corpus, length: int, cache: Cache, way: Way | None, place: int, shares: int
) -> None:
    """Compute share number ``place`` of ``shares`` of the targets for ``corpus.train`` into the cache.

    This goes from the last part to the first. A process that loads the targets at the same time goes from the first to
    the last. It waits for a part that is being computed here, and computes a missing part itself.
    """
    text = windows(corpus.train, length)
    way = way_for(teacher.shape, text.size, teacher.model.device.type, way)
    if way != "online":
        for part in _parts(text, len(text))[place::shares][::-1]:
            _part(teacher, part, way, cache)


def part_count(shape: ModelShape, tokens: int, device: str, way: Way | None = None) -> int:
    """The number of stored parts of the targets for ``tokens`` tokens; 0 if nothing is stored."""
    return 0 if way_for(shape, tokens, device, way) == "online" else math.ceil(tokens / PART_TOKENS)


def way_for(shape: ModelShape, tokens: int, device: str, way: Way | None = None) -> Way:
    """The kind of targets for ``tokens`` tokens: ``way``, or if None "cached" up to `LIMIT_BYTES` and "drawn" beyond.

    "cached" stores final states, "drawn" stores `DRAWS` tokens of each distribution, and "online" stores nothing.
    """
    if way is not None:
        return way
    dtype, _ = training_precision(device)
    return "cached" if tokens * shape.hidden * dtype.itemsize <= LIMIT_BYTES else "drawn"


def target_bytes(shape: ModelShape, tokens: int, device: str, way: Way | None = None) -> int:
    """What the stored targets for ``tokens`` tokens take on disk, of the kind that `way_for` chooses."""
    dtype, _ = training_precision(device)
    drawn = DRAWS * (2 if shape.vocab <= 2**16 else 4) + 4  # tokens and one likelihood
    each = {"cached": shape.hidden * dtype.itemsize, "drawn": drawn, "online": 0}
    return tokens * each[way_for(shape, tokens, device, way)]


def _rows(parts: Sequence[NDArray[Any]], places: NDArray[np.int64]) -> NDArray[Any]:
    """The rows number ``places`` (n,) of the concatenated ``parts``, (n, ...)."""
    starts = np.cumsum([0, *map(len, parts)])
    owners = np.searchsorted(starts, places, side="right") - 1
    return np.stack([parts[owner][place - starts[owner]] for owner, place in zip(owners, places, strict=True)])


def _parts(text: NDArray[np.integer], first: int) -> list[NDArray[np.integer]]:
    """The windows of ``text`` (n, length), split into parts; the ``first`` windows have parts of their own."""
    size = max(1, PART_TOKENS // text.shape[1])
    return [some[at : at + size] for some in (text[:first], text[first:]) for at in range(0, len(some), size)]


def _key(teacher: Teacher, text: NDArray[np.integer], *kind: str | int) -> str:
    return digest(teacher.fingerprint, *kind, *text.shape, np.ascontiguousarray(text).tobytes())


def _part(teacher: Teacher, text: NDArray[np.integer], way: Way, cache: Cache) -> Path:
    """The cache folder with the targets of ``text``, which are computed if they are missing."""
    dtype, _ = training_precision(teacher.model.device.type)
    if way == "cached":
        key = _key(teacher, text, str(dtype))
        return cache.build("targets", key, lambda empty: _write(empty, teacher, text, dtype))
    key = _key(teacher, text, "drawn", DRAWS, str(dtype))
    return cache.build("targets", key, lambda empty: _draw(empty, teacher, text, int(key[:15], 16)))


def _write(folder: Path, teacher: Teacher, text: NDArray[np.integer], dtype: torch.dtype) -> None:
    array = create(folder / "hidden.npy", dtype, (*text.shape, teacher.shape.hidden))
    for rows, states in _final_states(teacher, text):
        array[rows] = to_array(states, dtype)
    array.flush()


@torch.no_grad()
def _draw(folder: Path, teacher: Teacher, text: NDArray[np.integer], seed: int) -> None:
    vocab, device = teacher.shape.vocab, teacher.model.device
    number = np.uint16 if vocab <= 2**16 else np.uint32
    ids = create_array(folder / "ids.npy", number, (text.size, DRAWS))
    likelihoods = create_array(folder / "likelihoods.npy", np.float32, (text.size,))
    generator, head = torch.Generator(device).manual_seed(seed), Targets(teacher).head()
    done = 0
    for _, states in _final_states(teacher, text):
        for chunk in torch.split(states.flatten(0, 1), chunk_tokens(vocab, device.type)):
            with autocast(device.type):
                logits = torch.nn.functional.linear(chunk, head)
            logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            drawn = logs.exp().multinomial(DRAWS, replacement=True, generator=generator)
            rows = slice(done, done + len(chunk))
            ids[rows], likelihoods[rows] = drawn.cpu().numpy(), logs.gather(1, drawn).mean(dim=1).cpu().numpy()
            done += len(chunk)
    ids.flush()
    likelihoods.flush()


def _final_states(teacher: Teacher, text: NDArray[np.integer]) -> Iterator[tuple[slice, Tensor]]:
    """The teacher's final states (batch, length, H) for ``text`` (n, length), batch by batch, each with its rows."""
    log.info("computing the teacher's targets for %s tokens", f"{text.size:,}")
    online, device = Targets(teacher), teacher.model.device
    batch = max(1, BATCH_TOKENS[device.type] // text.shape[1])
    starts = range(0, len(text), batch)
    for start in counted(starts, text.size, "the teacher's targets, tokens", batch * text.shape[1]):
        part = text[start : start + batch]
        with autocast(device.type):
            states = online.hidden(np.empty(0, np.int64), torch.from_numpy(part.astype(np.int64)).to(device))
        yield slice(start, start + len(part)), states.reshape(*part.shape, -1)
