"""Mixtures: what is written is what is read, to a window, in an order that repeats."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.storage.cache import Cache
from trials.text.corpus import Corpus, load_corpus, windows
from trials.text.mixture import GENERAL, interleaved, order, parse_mixture, render_mixture, shares
from trials.text.packing import pack
from trials.text.sources import check_sources, open_source

LENGTH = 16
LETTERS = "abc"


def letters(folder: Path, letter: str, paragraphs: int) -> Path:
    """A text of words of one letter, by which a window shows its source."""
    file = folder / f"{letter}.txt"
    file.write_text("\n\n".join(" ".join([letter * 3] * (20 + n % 5)) for n in range(paragraphs)), "utf-8")
    return file


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    return {letter: letters(tmp_path, letter, 2_000) for letter in LETTERS}


def load(text: str, tokenizer: PreTrainedTokenizerFast, cache: Path, windows_of: int = 400) -> Corpus:
    return load_corpus(text, tokenizer, Cache(cache), windows_of * LENGTH, 40 * LENGTH, LENGTH)


def letters_of(tokens: NDArray[np.integer], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The letter of each window."""
    return [next(one for one in tokenizer.decode(row) if one in LETTERS) for row in windows(tokens, LENGTH)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stdlib", [("stdlib", "stdlib", 1)]),
        ("org/name:config", [("name-config", "org/name:config", 1)]),
        ("org/name:0.5", [("name-0.5", "org/name:0.5", 1)]),
        ("web=org/name:0.7,code=stdlib:0.3", [("web", "org/name", 0.7), ("code", "stdlib", 0.3)]),
        ("web=org/name:config:2, stdlib:1", [("web", "org/name:config", 2), ("stdlib", "stdlib", 1)]),
        ("org/name,stdlib", [("name", "org/name", 1), ("stdlib", "stdlib", 1)]),
        ("web=org/name", [("web", "org/name", 1)]),
    ],
)
def test_what_is_written_is_read(text: str, expected: list[tuple[str, str, float]]) -> None:
    found = [(one.name, one.source, float(one.weight)) for one in parse_mixture(text)]
    assert found == expected


def test_the_path_of_a_file_is_one_source(tmp_path: Path) -> None:
    strange = letters(tmp_path, "a", 3).rename(tmp_path / "x=a,b:0.5.txt")
    (part,) = parse_mixture(str(strange))
    assert part.source == str(strange)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/b:0.7,stdlib", "'stdlib' has no weight; give every source one"),
        ("a/b:1,,stdlib:1", "an entry is empty"),
        ("a/b:0,stdlib:1", "the weight of 'a/b' must be above 0"),
        ("x=a/b,x=stdlib", "two sources are called 'x'"),
        ("a/b,c/b", "two sources are called 'b'"),
    ],
)
def test_a_wrong_mixture_names_the_entry(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_mixture(text)


def test_the_general_mixture_is_of_known_kinds() -> None:
    parts = parse_mixture(GENERAL)
    assert sum(shares(parts)) == 1
    check_sources(part.source for part in parts)


def test_a_rendered_mixture_is_the_same_mixture() -> None:
    for text in (GENERAL, "stdlib", "web=org/name:config:0.125,stdlib:3"):
        rendered = render_mixture(text, str)
        assert parse_mixture(rendered) == parse_mixture(text)
        assert render_mixture(rendered, str) == rendered
    assert render_mixture("a/b:1,c/d:3", str.upper) == "b=A/B:1,d=C/D:3"


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 300), st.integers(1, 300))
def test_every_beginning_has_the_shares_of_the_whole(weights: list[int], count: int, further: int) -> None:
    wanted = [Fraction(weight, sum(weights)) for weight in weights]
    places = order(wanted, count)
    for source, share in enumerate(wanted):
        counts = np.cumsum(places == source)
        assert np.abs(counts - float(share) * np.arange(1, count + 1)).max() < 1 + 1e-9
    assert np.array_equal(order(wanted, count + further)[:count], places)


def test_a_source_that_ends_is_repeated_or_ends_the_mixture() -> None:
    parts = [np.arange(6), np.arange(100, 120)]  # three windows of two tokens, and ten
    places = np.array([0, 1] * 5)
    repeated = interleaved(parts, places, 2, repeat=True).reshape(-1, 2)
    assert repeated[places == 0].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert repeated[places == 1].tolist() == [[100 + 2 * k, 101 + 2 * k] for k in range(5)]
    ended = interleaved(parts, places, 2, repeat=False).reshape(-1, 2)
    assert ended.tolist() == repeated[:6].tolist()


def test_each_part_of_a_search_has_the_share_of_every_source(
    sources: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = f"{sources['a']}:0.5,{sources['b']}:0.3,{sources['c']}:0.2"
    corpus = load(text, tiny_tokenizer, tmp_path / "cache")
    for tokens, counts in ((corpus.train, (10, 40, 400)), (corpus.validation, (10, 40))):
        found = letters_of(tokens, tiny_tokenizer)
        assert len(found) == counts[-1]
        for count in counts:  # the calibration, the trials and the finals each read a beginning
            for letter, share in zip(LETTERS, (0.5, 0.3, 0.2), strict=True):
                assert abs(found[:count].count(letter) - share * count) < 1
    assert corpus.name == "a+b+c"
    assert corpus.description.startswith("a+b+c (a 50.0%, b 30.0%, c 20.0%): 6,400 training and 640 validation")


def test_windows_of_a_source_are_those_of_the_source_alone(
    sources: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mixed = windows(load(f"{sources['a']},{sources['b']}", tiny_tokenizer, tmp_path / "cache").train, LENGTH)
    for place, letter in enumerate("ab"):
        alone = pack(open_source(str(sources[letter])).train(), tiny_tokenizer, 200 * LENGTH, LENGTH)
        assert np.array_equal(mixed[place::2], windows(alone, LENGTH))


def test_a_mixture_repeats_its_windows_bit_for_bit(
    sources: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A resumed search packs the text anew where its cache is gone, and finals read a longer text."""
    text = f"{sources['a']}:2,{sources['b']}:1"
    first = load(text, tiny_tokenizer, tmp_path / "one")
    again = load(text, tiny_tokenizer, tmp_path / "two")
    longer = load(text, tiny_tokenizer, tmp_path / "one", 600)
    assert first.fingerprint == again.fingerprint != longer.fingerprint
    assert np.array_equal(first.train, again.train)
    assert np.array_equal(first.train, longer.train[: len(first.train)])
    other = load(f"{sources['a']}:1,{sources['b']}:1", tiny_tokenizer, tmp_path / "one")
    assert other.fingerprint != first.fingerprint


def test_a_short_source_is_read_again_and_the_description_says_so(
    sources: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "short").mkdir()
    short = letters(tmp_path / "short", "b", 20)
    corpus = load(f"{sources['a']},{short}", tiny_tokenizer, tmp_path / "cache")
    assert letters_of(corpus.train, tiny_tokenizer).count("b") == 200
    assert ", b 50.0%, read " in corpus.description
    found = letters_of(corpus.validation, tiny_tokenizer)
    assert len(found) < 40, "no window of validation text occurs twice"
    assert abs(found.count("a") - found.count("b")) <= 1


def test_a_source_without_a_window_is_named(
    sources: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("one\n\ntwo\n", "utf-8")
    with pytest.raises(InputError, match=r"corpus .*tiny\.txt: its train text is shorter than one window of 16 tokens"):
        load(f"{sources['a']},{tiny}", tiny_tokenizer, tmp_path / "cache")


def test_fewer_tokens_than_a_window_are_refused(
    sources: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(InputError, match="15 validation tokens are less than one window of 16"):
        load_corpus(f"{sources['a']},{sources['b']}", tiny_tokenizer, cache, 100, 15, LENGTH)
