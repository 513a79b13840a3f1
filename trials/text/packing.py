"""Packs documents into tokens: each ends with the end-of-text token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError
from trials.storage.cache import digest
from trials.storage.progress import Counter
from trials.text.text_source import cut

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import PreTrainedTokenizerBase

FORMAT = 3  # part of cache keys: raise it whenever the same text and tokenizer give other tokens
ENCODED_TOGETHER = 64  # documents per call: enough for a parallel tokenizer, and few are encoded beyond the limit
CHARACTERS_TOGETHER = 2**20  # of these documents: a tokenizer takes 150 bytes of memory for each
LONGEST_ENCODED = 2**18  # characters of a text that is encoded whole; a longer one is cut

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


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
    remaining, progress = limit, Counter("tokens of text", limit)
    for pieces in _groups(documents):
        if remaining <= 0:
            break
        for ids, piece in zip(encode(tokenizer, [piece.text for piece in pieces]), pieces, strict=True):
            first = [begin] if piece.first and begin is not None else []
            last = [tokenizer.eos_token_id] if piece.last else []
            parts.append(np.asarray([*first, *ids, *last][:remaining], dtype=np.int64))
            remaining -= len(parts[-1])
            progress.add(len(parts[-1]))
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
