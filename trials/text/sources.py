"""One source of text by its name: the standard library, a file, a folder, or a dataset of the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from search_spaces.errors import InputError
from trials.text.hub_text import ALIASES, check_hub, from_hub, is_hub_name
from trials.text.stdlib_text import stdlib_identity, training_documents, validation_documents
from trials.text.text_source import SUFFIXES, TextSource, check_text, from_path, local_path


def open_source(source: str, pins: Path | None = None) -> TextSource:
    """The text source named ``source``. Files on this machine have precedence over the hub.

    ``pins`` is as in `trials.text.hub_text.from_hub`. Raises InputError.
    """
    if source == "stdlib":
        return _stdlib()
    if is_path(source):
        return from_path(local_path(source))
    if is_hub_name(source):
        return from_hub(source, pins)
    raise InputError(
        f"corpus {source!r}: no such file, folder or dataset; give a file or folder, stdlib, "
        f"{', '.join(sorted(ALIASES))}, or a dataset of the hub as org/name or org/name:config"
    )


def check_sources(sources: Iterable[str]) -> None:
    """Raise InputError when one of ``sources`` cannot be a text, as far as the beginning of its first file tells.

    The hub is asked for its datasets, until it does not answer within seconds. That is no error: the text may be on
    this machine.
    """
    answers = True
    for source in sources:
        if is_path(source):
            check_text(local_path(source))
        elif is_hub_name(source):
            answers = answers and check_hub(source)
        elif source != "stdlib":
            open_source(source)


def is_path(source: str) -> bool:
    """Whether ``source`` names text on this machine rather than a dataset of the hub or ``stdlib``."""
    path = local_path(source)
    if not source:
        return False  # the path of an empty name is the current folder
    return os.path.exists(path) or path.suffix in SUFFIXES or source.startswith((".", "~", "/"))


def is_on_the_hub(source: str) -> bool:
    """Whether ``source`` names a dataset of the hub rather than text on this machine."""
    return source != "stdlib" and not is_path(source) and is_hub_name(source)


def _stdlib() -> TextSource:
    return TextSource(
        name="stdlib",
        identity=stdlib_identity(),
        train=lambda: (document.text for document in training_documents()),
        validation=lambda: (document.text for document in validation_documents()),
    )
