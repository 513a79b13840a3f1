"""Packs text into tokens and orders their batches. Every trial sees the same batches in the same order."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError
from trials.storage.cache import Cache, digest
from trials.text.hub_text import ALIASES, from_hub, is_hub_name
from trials.text.stdlib_text import stdlib_identity, training_documents, validation_documents
from trials.text.text_source import SUFFIXES, TextSource, from_path

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # part of the cache key: raise it whenever the same text and tokenizer give other tokens
ENCODED_TOGETHER = 64  # documents per call: enough for a parallel tokenizer, and few are encoded beyond the limit

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

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
    source: str, tokenizer: PreTrainedTokenizerBase, cache: Cache, train_tokens: int, validation_tokens: int
) -> Corpus:
    """The corpus of ``source``, with at most ``train_tokens`` and ``validation_tokens`` tokens, from the cache or now.

    ``source`` is ``stdlib``, a ``.txt`` or ``.jsonl`` file, a folder of those, or a dataset of the hub
    (``wikitext-103``, ``org/name``, ``org/name:config``). Raises InputError when it cannot be read or is empty.
    """
    text = open_source(source)
    key = digest(FORMAT, text.name, text.identity, tokenizer_identity(tokenizer), train_tokens, validation_tokens)
    limits = {"train": train_tokens, "validation": validation_tokens}
    folder = cache.build("corpus", key, lambda empty: _write(empty, text, tokenizer, limits))
    return read_corpus(folder)


def read_corpus(folder: Path) -> Corpus:
    """The corpus in a folder of the cache, memory-mapped. Only the folder is needed, also on another machine."""
    arrays = {side: np.load(folder / f"{side}.npy", mmap_mode="r") for side in ("train", "validation")}
    return Corpus(**arrays, **json.loads((folder / "corpus.json").read_text("utf-8")))


def open_source(source: str) -> TextSource:
    """The text source named ``source``. Files on this machine have precedence over the hub. Raises InputError."""
    if source == "stdlib":
        return _stdlib()
    if is_path(source):
        return from_path(Path(source).expanduser())
    if is_hub_name(source):
        return from_hub(source)
    raise InputError(
        f"corpus {source!r}: no such file, folder or dataset; give a file or folder, stdlib, "
        f"{', '.join(sorted(ALIASES))}, or a dataset of the hub as org/name or org/name:config"
    )


def is_path(source: str) -> bool:
    """Whether ``source`` names text on this machine rather than a dataset of the hub or ``stdlib``."""
    path = Path(source).expanduser()
    return path.exists() or path.suffix in SUFFIXES or source.startswith((".", "~", "/"))


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of everything in a tokenizer that affects the ids of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: dict[str, Any] = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        rules = json.loads(backend.to_str())
        rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    return digest(json.dumps(rules, sort_keys=True), str(tokenizer.eos_token_id))


def _stdlib() -> TextSource:
    return TextSource(
        name="stdlib",
        identity=stdlib_identity(),
        train=lambda: (document.text for document in training_documents()),
        validation=lambda: (document.text for document in validation_documents()),
    )


def _write(folder: Path, text: TextSource, tokenizer: PreTrainedTokenizerBase, limits: dict[str, int]) -> None:
    log.info("tokenising %s, at most %s and %s tokens", text.name, *limits.values())
    dtype = token_type(tokenizer)
    tokens = {
        side: pack(documents(), tokenizer, limits[side]).astype(dtype)
        for side, documents in (("train", text.train), ("validation", text.validation))
    }
    for side, array in tokens.items():
        if not len(array):
            raise InputError(f"corpus {text.name}: no {side} text in it; both sides of the split need text")
        np.save(folder / f"{side}.npy", array)
    sizes = f"{len(tokens['train']):,} training and {len(tokens['validation']):,} validation tokens"
    described = {
        "name": text.name,
        "fingerprint": digest(*(part for array in tokens.values() for part in (str(dtype), array.tobytes()))),
        "description": f"{text.name}: {sizes}",
    }
    (folder / "corpus.json").write_text(json.dumps(described, indent=1), "utf-8")


def token_type(tokenizer: PreTrainedTokenizerBase) -> type[np.uint16] | type[np.uint32]:
    """The smallest integer type that holds every id."""
    return np.uint16 if len(tokenizer) < 65536 else np.uint32


def pack(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> npt.NDArray[np.int64]:
    """The first ``limit`` tokens of ``documents``, each followed by the end-of-text token.

    Raises InputError when the tokenizer has no such token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the model's tokenizer has no end-of-text token (eos_token), which must follow each document; add one to "
            "tokenizer_config.json"
        )
    parts: list[npt.NDArray[np.int64]] = []
    remaining = limit
    for texts in _groups(documents, ENCODED_TOGETHER):
        if remaining <= 0:
            break
        for ids in encode(tokenizer, texts):
            parts.append(np.asarray([*ids, tokenizer.eos_token_id][:remaining], dtype=np.int64))
            remaining -= len(parts[-1])
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _groups(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for document in documents:
        group.append(document)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
