"""Packs text into tokens and orders their batches. Every trial sees the same batches in the same order."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError
from trials.storage.cache import Cache, digest
from trials.text.mixture import Part, interleaved, order, parse_mixture, shares
from trials.text.packing import FORMAT, TokenArray, pack, packing_identity, token_type
from trials.text.sources import open_source
from trials.text.text_source import TextSource

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import PreTrainedTokenizerBase

SIDES = ("train", "validation")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationText:
    """Flat packed tokens of one further validation text. ``fingerprint`` is a digest of the tokens."""

    name: str
    tokens: TokenArray
    fingerprint: str


@dataclass(frozen=True)
class Corpus:
    """Flat packed tokens, memory-mapped and read-only. Each document ends with the end-of-text token.

    Where the tokenizer begins every text with a token, each document begins with it, and so does each window if the
    corpus was loaded for windows of one length.

    ``fingerprint`` is a digest of the tokens, so corpora with the same fingerprint give the same trials. ``further``
    holds more validation texts beside ``validation``.
    """

    train: TokenArray
    validation: TokenArray
    name: str
    fingerprint: str
    description: str
    further: tuple[ValidationText, ...] = ()

    @property
    def texts(self) -> dict[str, TokenArray]:
        """All validation texts by name, the corpus's own first."""
        own = re.sub(r"[^\w.-]+", "-", self.name)
        return {own: self.validation, **{one.name: one.tokens for one in self.further}}


@dataclass(frozen=True)
class BatchOrder:
    """The windows in the batch of each step, among ``n_windows``. They depend only on the seed and the step.

    Each epoch is a permutation seeded by (seed, epoch); a batch may span two epochs. In the first epoch, the ``first``
    windows, if given, come before all others, in the order that they have in a text without the others. A final on a
    longer text can thus continue the order of its trial.
    """

    n_windows: int
    batch: int
    seed: int
    first: int = 0

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """The window numbers of batch ``step`` (from 0), shape (batch,)."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs = places // self.n_windows
        indices = np.empty(self.batch, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[places[here] % self.n_windows]
        return indices

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch or not self.first:
            return self._shuffled(self.n_windows, epoch)
        rest = self.first + self._shuffled(self.n_windows - self.first, 0, 1)
        return np.concatenate([self._shuffled(self.first, 0), rest])

    def _shuffled(self, count: int, *seeds: int) -> npt.NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([self.seed, *seeds])).permutation(count)


def windows(tokens: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """The non-overlapping windows of flat tokens, shape (n, length), as a view, without the remainder."""
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)


def load_corpus(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    train_tokens: int,
    validation_tokens: int,
    length: int | None = None,
) -> Corpus:
    """The corpus of ``source``, with at most ``train_tokens`` and ``validation_tokens`` tokens, from the cache or now.

    ``length`` is that of the windows that it is packed for, see `trials.text.packing.pack`.

    ``source`` is ``stdlib``, a ``.txt`` or ``.jsonl`` file, a folder of text or code, a dataset of the hub
    (``wikitext-103``, ``org/name``, ``org/name:config``), or a mixture of those (`trials.text.mixture`), which needs a
    ``length``. Every beginning of a mixture has the shares of the whole, off by less than a window for each source. So
    calibration, screening, trials and validation, which read from the start, each have their share of every source.

    A dataset of the hub has the revision of its first use in this cache. What is packed already needs no hub.

    Raises InputError when a source cannot be read or is too short.
    """
    parts = [(part, open_source(part.source, pins_in(cache))) for part in parse_mixture(source)]
    limits = train_tokens, validation_tokens
    key = _key(parts, packing_identity(tokenizer, length), limits, length)
    return read_corpus(cache.build("corpus", key, lambda empty: _write(empty, parts, tokenizer, limits, length)))


def pins_in(cache: Cache) -> Path:
    """The folder with the revisions of datasets, see `trials.text.hub_text.from_hub`."""
    return cache.root / "hub"


def read_corpus(folder: Path) -> Corpus:
    """The corpus in a folder of the cache, memory-mapped. Only the folder is needed, also on another machine."""
    arrays = {side: np.load(folder / f"{side}.npy", mmap_mode="r") for side in SIDES}
    return Corpus(**arrays, **json.loads((folder / "corpus.json").read_text("utf-8")))


_Parts = Sequence[tuple[Part, TextSource]]


def _key(parts: _Parts, identity: str, limits: tuple[int, int], length: int | None) -> str:
    if len(parts) == 1:
        ((_, text),) = parts
        return digest(FORMAT, text.name, text.identity, identity, *limits)
    sources = (item for part, text in parts for item in (part.name, str(part.weight), text.identity))
    return digest(FORMAT, "mixture", *sources, identity, str(length), *limits)


def _write(
    folder: Path, parts: _Parts, tokenizer: PreTrainedTokenizerBase, limits: tuple[int, int], length: int | None
) -> None:
    mixed = len(parts) > 1
    name = "+".join(part.name for part, _ in parts) if mixed else parts[0][1].name
    log.info("tokenising %s, at most %s and %s tokens", name, *limits)
    dtype, tokens, notes = token_type(tokenizer), {}, ""
    for side, limit in zip(SIDES, limits, strict=True):
        if mixed:
            packed, used = _mixed(parts, side, tokenizer, limit, length)
            notes = notes or f" ({used})"
        else:
            packed = pack(_documents(parts[0][1], side), tokenizer, limit, length)
        if not len(packed):
            raise InputError(f"corpus {name}: no {side} text in it; both sides of the split need text")
        tokens[side] = packed.astype(dtype)
        np.save(folder / f"{side}.npy", tokens[side])
    sizes = f"{len(tokens['train']):,} training and {len(tokens['validation']):,} validation tokens"
    described = {
        "name": name,
        "fingerprint": digest(*(part for array in tokens.values() for part in (str(dtype), array.tobytes()))),
        "description": f"{name}{notes}: {sizes}",
    }
    (folder / "corpus.json").write_text(json.dumps(described, indent=1), "utf-8")


def _documents(text: TextSource, side: str) -> Iterable[str]:
    return text.train() if side == "train" else text.validation()


def _mixed(
    parts: _Parts, side: str, tokenizer: PreTrainedTokenizerBase, limit: int, length: int | None
) -> tuple[npt.NDArray[np.int64], str]:
    """Flat tokens of one side of a mixture, and in words what share each source has."""
    if length is None:
        raise ValueError("a mixture is packed in windows, and needs their length")
    if limit < length:
        raise InputError(
            f"corpus: {limit:,} {side} tokens are less than one window of {length}; give more tokens or a smaller "
            "--sequence-length"
        )
    wanted = shares([part for part, _ in parts])
    places = order(wanted, limit // length)
    packed, words = [], []
    for number, ((part, text), share) in enumerate(zip(parts, wanted, strict=True)):
        needed = int((places == number).sum())
        log.info("tokenising %s of %s, at most %s tokens", side, part.name, f"{needed * length:,}")
        packed.append(pack(_documents(text, side), tokenizer, needed * length, length))
        found = len(packed[-1]) // length
        if needed and not found:
            raise InputError(
                f"corpus {part.source}: its {side} text is shorter than one window of {length} tokens; give more text "
                "or a smaller --sequence-length"
            )
        times = f", read {needed / found:.1f} times" if needed > found else ""
        words.append(f"{part.name} {float(share):.1%}{times}")
    return interleaved(packed, places, length, repeat=side == "train"), ", ".join(words)
