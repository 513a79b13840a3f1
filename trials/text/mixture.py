"""Mixtures: a corpus of several sources, each with its share of the windows.

A mixture is written ``web=HuggingFaceFW/fineweb-edu:0.7,code=./src:0.3``: entries ``SOURCE``, ``NAME=SOURCE``,
``SOURCE:WEIGHT`` or ``NAME=SOURCE:WEIGHT``, separated by commas. Weights count relative to their sum.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trials.text.text_source import SUFFIXES, local_path

# Half general web text, a quarter encyclopedia, and an eighth each of simple stories and of textbooks: docs/guide.md
GENERAL = (
    "web=HuggingFaceFW/fineweb-edu:sample-10BT:0.5,wiki=wikitext-103:0.25,"
    "stories=roneneldan/TinyStories:0.125,textbooks=HuggingFaceTB/smollm-corpus:cosmopedia-v2:0.125"
)
NAME = re.compile(r"[\w.-]{1,40}")
WEIGHT = re.compile(r"\d{1,6}(\.\d{1,6})?")


@dataclass(frozen=True)
class Part:
    """One source of a mixture. ``weight`` is its share, relative to the weights of the others."""

    name: str
    source: str
    weight: Fraction


def parse_mixture(text: str) -> tuple[Part, ...]:
    """The parts of a corpus. A text without commas and without ``NAME=`` is one source, as is the path of a file.

    The default name of a file is its stem; that of a dataset is its last part.

    Raises InputError for an empty entry, a name that is used twice, a weight of 0, and weights for some sources only.
    """
    if os.path.exists(local_path(text)) or not ("," in text or named_source(text)[0]):
        return (Part(default_name(text), text, Fraction(1)),)
    found = [_entry(entry.strip(), text) for entry in text.split(",")]
    names = [name for name, _, _ in found]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"corpus {text!r}: two sources are called {repeated!r}; name one of them with name=source")
    weighed = [weight is not None for _, _, weight in found]
    if any(weighed) and not all(weighed):
        without = found[weighed.index(False)][1]
        raise InputError(f"corpus {text!r}: {without!r} has no weight; give every source one (SOURCE:0.3), or none")
    return tuple(Part(name, source, Fraction(weight or 1)) for name, source, weight in found)


def _entry(entry: str, text: str) -> tuple[str, str, str | None]:
    """The name, the source and the weight of one entry."""
    name, source = named_source(entry)
    weight = None
    if not os.path.exists(local_path(source)):
        before, colon, last = source.rpartition(":")
        if colon and WEIGHT.fullmatch(last):
            source, weight = before, last
    if not source:
        raise InputError(f"corpus {text!r}: an entry is empty; write SOURCE or NAME=SOURCE:WEIGHT between the commas")
    if weight is not None and not Fraction(weight):
        raise InputError(f"corpus {text!r}: the weight of {source!r} must be above 0; leave the source out instead")
    return name or default_name(source), source, weight


def named_source(entry: str) -> tuple[str, str]:
    """The name and the source of ``NAME=SOURCE``; an entry without a name has the name ""."""
    name, equals, source = entry.partition("=")
    return (name, source) if equals and NAME.fullmatch(name) else ("", entry)


def default_name(source: str) -> str:
    """The name of a source that was given none: a file's stem, or the last part of a dataset's name."""
    path = local_path(source)
    local = os.path.exists(path) or path.suffix in SUFFIXES
    last = Path(source).stem if local else source.rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last)[:40] or "text"


def render_mixture(text: str, change: Callable[[str], str]) -> str:
    """``text`` with every source replaced by ``change(source)``."""
    parts = parse_mixture(text)
    if len(parts) == 1 and parts[0].source == text:
        return change(text)
    return ",".join(f"{one.name}={change(one.source)}:{_decimal(one.weight)}" for one in parts)


def _decimal(weight: Fraction) -> str:
    return f"{float(weight):.6f}".rstrip("0").rstrip(".")


def shares(parts: Sequence[Part]) -> list[Fraction]:
    """The share of each part; they sum to 1."""
    whole = sum((one.weight for one in parts), Fraction(0))
    return [one.weight / whole for one in parts]


def order(wanted: list[Fraction], count: int) -> NDArray[np.int64]:
    """The number of the source of each of ``count`` windows, so that every beginning has the shares ``wanted``.

    Among the first n windows, source i has share_i * n of them, off by less than one. This is Tijdeman's answer to the
    chairman assignment problem (Discrete Mathematics 32, 1980): of the sources that may be next, the most urgent is.
    A longer order begins with the shorter one.
    """
    if len(wanted) == 1:
        return np.zeros(count, dtype=np.int64)
    least = Fraction(1, 2 * (len(wanted) - 1))
    taken, chosen = [0] * len(wanted), np.empty(count, dtype=np.int64)
    for n in range(1, count + 1):
        due = [share * n - have for share, have in zip(wanted, taken, strict=True)]
        allowed = [i for i, one in enumerate(due) if one >= least]
        chosen[n - 1] = best = min(allowed, key=lambda i: ((1 - least - due[i]) / wanted[i], i))
        taken[best] += 1
    return chosen


def interleaved(
    parts: list[NDArray[np.int64]], places: NDArray[np.int64], length: int, repeat: bool
) -> NDArray[np.int64]:
    """Flat tokens whose window k is the next window of source ``places[k]``, each of ``length`` tokens.

    ``parts`` are the flat tokens of the sources. A source that has no more windows begins again if ``repeat``;
    otherwise the mixture ends there, so that no window occurs twice.
    """
    windows = [tokens[: len(tokens) // length * length].reshape(-1, length) for tokens in parts]
    turns = np.empty_like(places)
    for source in range(len(parts)):
        here = places == source
        turns[here] = np.arange(here.sum())
    counts = np.array([len(one) for one in windows])
    if not repeat:
        beyond = np.flatnonzero(turns >= counts[places])
        places = places[: beyond[0]] if len(beyond) else places
    mixed = np.empty((len(places), length), dtype=np.int64)
    for source, own in enumerate(windows):
        here = places == source
        mixed[here] = own[turns[: len(places)][here] % max(1, len(own))] if here.any() else 0
    return mixed.reshape(-1)
