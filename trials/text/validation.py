"""Further validation text: what candidates are compared on beside the held-out part of their corpus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from trials.storage.cache import Cache, digest
from trials.text.corpus import (
    FORMAT,
    Corpus,
    ValidationText,
    is_path,
    open_source,
    pack,
    token_type,
    tokenizer_identity,
)
from trials.text.text_source import TextSource, whole_from_path

NAME = re.compile(r"[\w.-]{1,40}")


def parse_validation(text: str | None) -> tuple[tuple[str, str], ...]:
    """(name, source) of each text in a comma-separated list of ``source`` or ``name=source``.

    A file is named after its stem, a dataset after its last part. Raises InputError for an empty entry, a name that
    would not do as one of a metric, and a name that is there twice.
    """
    named: dict[str, str] = {}
    for entry in text.split(",") if text else ():
        name, source = _named(entry.strip())
        if not source or not NAME.fullmatch(name):
            raise InputError(
                f"--validation {entry!r}: give a .txt or .jsonl file, a folder or a hub dataset, or name=source with a "
                "name of letters, digits, '.', '_' and '-'; entries are separated by commas"
            )
        if name in named:
            raise InputError(f"--validation {text!r}: two texts are called {name!r}; name one of them with name=source")
        named[name] = source
    return tuple(named.items())


def _named(entry: str) -> tuple[str, str]:
    name, equals, source = entry.partition("=")
    if equals and NAME.fullmatch(name):
        return name, source
    stem = Path(entry).stem if is_path(entry) else entry.rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", stem)[:40], entry


def add_validation(
    corpus: Corpus,
    further: Iterable[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    limit: int,
) -> Corpus:
    """``corpus`` with the texts ``further`` (name, source), at most ``limit`` tokens of each, tokenised once.

    Raises InputError when one cannot be read, is empty, or is called as the corpus itself.
    """
    texts = tuple(_load(name, source, tokenizer, cache, limit) for name, source in further)
    if not texts:
        return corpus
    (own,) = corpus.texts
    for text in texts:
        if text.name == own:
            raise InputError(f"--validation: {own!r} is the name of the corpus' own part; write another-name=source")
    parts = (part for text in texts for part in (text.name, text.fingerprint))
    return replace(corpus, further=texts, fingerprint=digest(corpus.fingerprint, *parts))


def open_validation(source: str) -> TextSource:
    """The text that ``source`` names: all of a file, the validation files of a folder, the validation split of a hub's.

    Raises InputError.
    """
    return whole_from_path(Path(source).expanduser()) if is_path(source) else open_source(source)


def _load(name: str, source: str, tokenizer: PreTrainedTokenizerBase, cache: Cache, limit: int) -> ValidationText:
    text = open_validation(source)

    def write(folder: Path) -> None:
        tokens = pack(text.validation(), tokenizer, limit).astype(token_type(tokenizer))
        if not len(tokens):
            raise InputError(f"--validation {source}: there is no text in it")
        np.save(folder / "tokens.npy", tokens)
        (folder / "text.json").write_text(json.dumps(digest(str(tokens.dtype), tokens.tobytes())))

    folder = cache.build("validation", digest(FORMAT, text.identity, tokenizer_identity(tokenizer), limit), write)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    return ValidationText(name, tokens, json.loads((folder / "text.json").read_text()))
