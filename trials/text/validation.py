"""Further validation texts: candidates are compared on them beside the held-out part of the corpus."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.errors import InputError
from trials.storage.cache import Cache, digest
from trials.text.corpus import Corpus, ValidationText, pins_in
from trials.text.mixture import NAME, default_name, named_source
from trials.text.packing import FORMAT, pack, packing_identity, token_type
from trials.text.sources import is_path, open_source
from trials.text.text_source import TextSource, local_path, whole_from_path

if TYPE_CHECKING:  # takes seconds to import, and the checks of a command line need none of it
    from transformers import PreTrainedTokenizerBase

OF_TEXT = "val_loss/"  # prefix of the metric for the loss on one validation text; the name of the text follows


def parse_validation(text: str | None) -> tuple[tuple[str, str], ...]:
    """The pairs (name, source) of a comma-separated list of ``source`` or ``name=source``.

    The default name of a file is its stem; that of a dataset is its last part. Raises InputError for an empty entry, a
    name that cannot be part of a metric's name, and a repeated name.
    """
    named: dict[str, str] = {}
    for entry in text.split(",") if text else ():
        name, source = named_source(entry.strip())
        name = name or default_name(source)
        if not source or not NAME.fullmatch(name):
            raise InputError(
                f"--validation {entry!r}: not a text; give a .txt or .jsonl file, a folder or a hub dataset, or "
                "name=source with a name of letters, digits, '.', '_' and '-'; separate entries by commas"
            )
        if name in named:
            raise InputError(f"--validation {text!r}: two texts are called {name!r}; name one of them with name=source")
        named[name] = source
    return tuple(named.items())


def add_validation(
    corpus: Corpus,
    further: Iterable[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    limit: int,
    length: int | None = None,
) -> Corpus:
    """``corpus`` with the texts ``further``, pairs (name, source), at most ``limit`` tokens of each.

    ``length`` is that of the windows that they are packed for, see `trials.text.corpus.pack`.

    Raises InputError when a text cannot be read, is empty, or has the name of the corpus.
    """
    texts = tuple(_load(name, source, tokenizer, cache, limit, length) for name, source in further)
    if not texts:
        return corpus
    (own,) = corpus.texts
    for text in texts:
        if text.name == own:
            raise InputError(f"--validation: {own!r} is the name of the corpus's own part; write another-name=source")
    parts = (part for text in texts for part in (text.name, text.fingerprint))
    return replace(corpus, further=texts, fingerprint=digest(corpus.fingerprint, *parts))


def open_validation(source: str, pins: Path | None = None) -> TextSource:
    """The source of a validation text: a whole file, the validation files of a folder, or a dataset's validation split.

    ``pins`` is as in `trials.text.hub_text.from_hub`. Raises InputError.
    """
    return whole_from_path(local_path(source)) if is_path(source) else open_source(source, pins)


def _load(
    name: str, source: str, tokenizer: PreTrainedTokenizerBase, cache: Cache, limit: int, length: int | None
) -> ValidationText:
    text = open_validation(source, pins_in(cache))

    def write(folder: Path) -> None:
        tokens = pack(text.validation(), tokenizer, limit, length).astype(token_type(tokenizer))
        if not len(tokens):
            raise InputError(f"--validation {source}: no text in it; give a source with text")
        np.save(folder / "tokens.npy", tokens)
        (folder / "text.json").write_text(json.dumps(digest(str(tokens.dtype), tokens.tobytes())))

    folder = cache.build("validation", digest(FORMAT, text.identity, packing_identity(tokenizer, length), limit), write)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    return ValidationText(name, tokens, json.loads((folder / "text.json").read_text()))
