"""Packs text into tokens and orders their batches. Every trial sees the same batches in the same order."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError
from trials.storage.cache import Cache, digest
from trials.text.hub_text import ALIASES, from_hub, is_hub_name
from trials.text.stdlib_text import stdlib_identity, training_documents, validation_documents
from trials.text.text_source import SUFFIXES, TextSource, cut, from_path, local_path, text_files

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import PreTrainedTokenizerBase

FORMAT = 3  # part of the cache key: raise it whenever the same text and tokenizer give other tokens
ENCODED_TOGETHER = 64  # documents per call: enough for a parallel tokenizer, and few are encoded beyond the limit
CHARACTERS_TOGETHER = 2**20  # of these documents: a tokenizer takes 150 bytes of memory for each
LONGEST_ENCODED = 2**18  # characters of a text that is encoded whole; a longer one is cut

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

    ``length`` is that of the windows that it is packed for, see `pack`.

    ``source`` is ``stdlib``, a ``.txt`` or ``.jsonl`` file, a folder of those, or a dataset of the hub
    (``wikitext-103``, ``org/name``, ``org/name:config``). Raises InputError when it cannot be read or is empty.
    """
    text = open_source(source)
    identity = packing_identity(tokenizer, length)
    key = digest(FORMAT, text.name, text.identity, identity, train_tokens, validation_tokens)
    limits = {"train": train_tokens, "validation": validation_tokens}
    folder = cache.build("corpus", key, lambda empty: _write(empty, text, tokenizer, limits, length))
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
        return from_path(local_path(source))
    if is_hub_name(source):
        return from_hub(source)
    raise InputError(
        f"corpus {source!r}: no such file, folder or dataset; give a file or folder, stdlib, "
        f"{', '.join(sorted(ALIASES))}, or a dataset of the hub as org/name or org/name:config"
    )


def check_source(source: str) -> None:
    """Raise InputError when ``source`` cannot be a text, before anything is read. A hub is not asked."""
    if is_path(source):
        text_files(local_path(source))
    elif source != "stdlib" and not is_hub_name(source):
        open_source(source)


def is_path(source: str) -> bool:
    """Whether ``source`` names text on this machine rather than a dataset of the hub or ``stdlib``."""
    path = local_path(source)
    if not source:
        return False  # the path of an empty name is the current folder
    return os.path.exists(path) or path.suffix in SUFFIXES or source.startswith((".", "~", "/"))


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


def packing_identity(tokenizer: PreTrainedTokenizerBase, length: int | None) -> str:
    """A digest of everything that affects the tokens of `pack` besides text and limit."""
    begin = begin_token(tokenizer)
    identity = tokenizer_identity(tokenizer)
    return identity if begin is None else digest(identity, begin, str(length))


def begin_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the tokenizer puts in front of every text, None if it puts none."""
    begin: int | None = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer("x")["input_ids"][:1] == [begin] else None


def _stdlib() -> TextSource:
    return TextSource(
        name="stdlib",
        identity=stdlib_identity(),
        train=lambda: (document.text for document in training_documents()),
        validation=lambda: (document.text for document in validation_documents()),
    )


def _write(
    folder: Path, text: TextSource, tokenizer: PreTrainedTokenizerBase, limits: dict[str, int], length: int | None
) -> None:
    log.info("tokenising %s, at most %s and %s tokens", text.name, *limits.values())
    dtype = token_type(tokenizer)
    tokens = {
        side: pack(documents(), tokenizer, limits[side], length).astype(dtype)
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


def pack(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, limit: int, length: int | None = None
) -> npt.NDArray[np.int64]:
    """The first ``limit`` tokens of ``documents``, each followed by the end-of-text token.

    A tokenizer may put a begin-of-text token in front of every text, as Llama's does. Then each document begins with
    it, and so does each window of ``length`` tokens, if that is given: a model reads every window as a text.

    Raises InputError when the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the model's tokenizer has no end-of-text token (eos_token), which must follow each document; add one to "
            "tokenizer_config.json"
        )
    begin = begin_token(tokenizer)
    parts: list[npt.NDArray[np.int64]] = []
    remaining = limit
    for pieces in _groups(documents):
        if remaining <= 0:
            break
        for ids, piece in zip(encode(tokenizer, [piece.text for piece in pieces]), pieces, strict=True):
            first = [begin] if piece.first and begin is not None else []
            last = [tokenizer.eos_token_id] if piece.last else []
            parts.append(np.asarray([*first, *ids, *last][:remaining], dtype=np.int64))
            remaining -= len(parts[-1])
    tokens = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    return tokens if begin is None or length is None else _with_begins(tokens, begin, length)[:limit]


def _with_begins(tokens: npt.NDArray[np.int64], begin: int, length: int) -> npt.NDArray[np.int64]:
    """``tokens`` with ``begin`` added wherever a window of ``length`` tokens would begin with another token."""
    parts, place = [np.empty(0, dtype=np.int64)], 0
    while place < len(tokens):
        added = [] if tokens[place] == begin else [begin]
        window = tokens[place : place + max(1, length - len(added))]
        parts += [np.asarray(added, dtype=np.int64), window]
        place += len(window)
    return np.concatenate(parts)


class _Piece(NamedTuple):
    """A part of a document that is encoded whole. ``first`` and ``last`` say whether the document begins or ends."""

    text: str
    first: bool
    last: bool


def _groups(documents: Iterable[str]) -> Iterator[list[_Piece]]:
    """Yields the pieces of ``documents`` in groups that are encoded together."""
    group: list[_Piece] = []
    for piece in _pieces(documents):
        group.append(piece)
        if len(group) == ENCODED_TOGETHER or sum(len(one.text) for one in group) >= CHARACTERS_TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _pieces(documents: Iterable[str]) -> Iterator[_Piece]:
    for document in documents:
        first, left = True, len(document)
        for text in cut(document, LONGEST_ENCODED):
            left -= len(text)
            yield _Piece(text, first, left == 0)
            first = False
