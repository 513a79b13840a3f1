"""Text to tokens to batches: nothing is lost, the sides are separate, and every trial has the same order."""

from __future__ import annotations

import json
import re
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.storage.cache import Cache
from trials.text import packing, text_source
from trials.text.corpus import BatchOrder, Corpus, load_corpus, read_corpus, windows
from trials.text.hub_text import articles
from trials.text.packing import LONGEST_ENCODED, pack, tokenizer_identity
from trials.text.sources import check_sources, open_source
from trials.text.stdlib_text import source_files, topic_documents
from trials.text.text_source import cut, from_path, read_documents, split_files
from trials.text.validation import add_validation

MANY = 10**9
Load = Callable[..., Corpus]


@pytest.fixture
def load(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Load:
    def load(source: object, train: int = MANY, validation: int = MANY) -> Corpus:
        return load_corpus(str(source), tiny_tokenizer, Cache(tmp_path / "cache"), train, validation)

    return load


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


orders = st.builds(BatchOrder, st.integers(1, 60), st.integers(1, 25), st.integers(0, 2**32))


@given(orders, st.integers(1, 4))
def test_each_epoch_visits_every_window_once(order: BatchOrder, epochs: int) -> None:
    steps = -(-epochs * order.n_windows // order.batch)
    visited = np.concatenate([order.indices(step) for step in range(steps)])
    for epoch in range(epochs):
        of_epoch = visited[epoch * order.n_windows : (epoch + 1) * order.n_windows]
        assert sorted(of_epoch) == list(range(order.n_windows))


@given(orders, st.lists(st.integers(0, 200), min_size=1, max_size=10))
def test_a_batch_depends_on_seed_and_step_alone(order: BatchOrder, steps: list[int]) -> None:
    again = BatchOrder(order.n_windows, order.batch, order.seed)
    asked = {step: order.indices(step) for step in steps}
    assert all(np.array_equal(again.indices(step), asked[step]) for step in sorted(steps, reverse=True))
    assert all(indices.shape == (order.batch,) for indices in asked.values())


def test_epochs_and_seeds_give_different_orders() -> None:
    first, second = (BatchOrder(50, 50, 0).indices(step) for step in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, BatchOrder(50, 50, 1).indices(0))


@given(st.integers(0, 100), st.integers(1, 20))
def test_windows_are_the_tokens_in_order_less_the_remainder(count: int, length: int) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    cut = windows(tokens, length)
    assert cut.shape == (count // length, length)
    assert np.array_equal(cut.ravel(), tokens[: count - count % length])
    assert cut.size == 0 or np.shares_memory(cut, tokens)


def test_tokens_of_a_file_decode_to_its_documents(
    load: Load, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = [f"Row {number}: naïve “text”\n with 日本." for number in range(40)]
    corpus = load(rows(tmp_path / "a.jsonl", texts))
    end = tiny_tokenizer.eos_token
    assert tiny_tokenizer.decode(corpus.train).split(end) == [*texts[:38], ""]
    assert tiny_tokenizer.decode(corpus.validation).split(end) == [*texts[38:], ""]
    assert corpus.train.dtype == np.uint16
    assert not corpus.train.flags.writeable


def test_a_large_vocabulary_takes_wider_tokens(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_tokenizer), "__len__", lambda self: 65536)
    path = rows(tmp_path / "a.jsonl", ["one", "two"])
    assert load_corpus(str(path), tiny_tokenizer, Cache(tmp_path / "c"), 9, 9).train.dtype == np.uint32


def test_a_limit_gives_a_prefix_and_no_more_text_is_read(load: Load, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", [f"row {number}" for number in range(400)])
    whole, part = load(path), load(path, train=50, validation=7)
    assert np.array_equal(part.train, whole.train[:50])
    assert np.array_equal(part.validation, whole.validation[:7])
    assert len(load(path, train=MANY + 1).train) == len(whole.train)


def test_the_second_load_tokenises_nothing(
    load: Load, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rows(tmp_path / "a.jsonl", ["one", "two", "three"])
    first = load(path)
    monkeypatch.setattr("trials.text.packing.encode", lambda *_: pytest.fail("tokenised again"))
    second = load(path)
    assert np.array_equal(first.train, second.train)
    assert (first.name, first.fingerprint, first.description) == (second.name, second.fingerprint, second.description)


def test_changed_text_is_another_corpus(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    prints = [load(rows(path, texts)).fingerprint for texts in (["a", "b"], ["a", "c"], ["a", "b"])]
    assert prints[0] != prints[1]
    assert prints[0] == prints[2]


def test_the_fingerprint_tells_the_sides_apart(load: Load, tmp_path: Path) -> None:
    there = load(rows(tmp_path / "a.jsonl", ["one", "two"]))
    back = load(rows(tmp_path / "b.jsonl", ["two", "one"]))
    assert there.fingerprint != back.fingerprint


def test_a_worker_needs_the_cached_folder_alone(load: Load, tmp_path: Path) -> None:
    corpus = load(rows(tmp_path / "a.jsonl", ["one", "two"]))
    (folder,) = (path for path in (tmp_path / "cache" / "corpus").iterdir() if path.is_dir())
    again = read_corpus(folder)
    assert again.fingerprint == corpus.fingerprint
    assert np.array_equal(again.validation, corpus.validation)


def test_padding_left_in_a_tokenizer_does_not_change_its_identity(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    before = tokenizer_identity(tiny_tokenizer)
    backend = tiny_tokenizer.backend_tokenizer
    backend.enable_truncation(5)
    try:
        assert tokenizer_identity(tiny_tokenizer) == before
    finally:
        backend.no_truncation()


@given(st.lists(st.text(alphabet="ab c", min_size=1).filter(str.strip), min_size=2, max_size=60))
@example(["a", 37 * "a"])
def test_paragraphs_are_grouped_and_none_is_lost(paragraphs: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_text("\n\n".join(paragraphs), "utf-8")
        documents = [*from_path(path).train(), *from_path(path).validation()]
    assert "\n".join(documents).split() == "\n\n".join(paragraphs).split()


def test_lines_are_paragraphs_where_no_line_is_blank(tmp_path: Path) -> None:
    lines = [f"line {number} of a text" for number in range(400)]
    (tmp_path / "rows.txt").write_text("\n".join(lines) + "\n\n")
    source = from_path(tmp_path / "rows.txt")
    train, held_out = "".join(source.train()), "".join(source.validation())
    assert (train + held_out).split("\n")[:-1] == lines
    assert 0.03 < len(held_out) / len(train) < 0.08


WORDS = "the boat saw a bright old tree and then it rained for days "


def in_one_row(path: Path, text: str) -> Path:
    """``text`` in one line of a .txt, or in one row of a .jsonl."""
    path.write_text(text if path.suffix == ".txt" else json.dumps({"text": text}))
    return path


@pytest.mark.parametrize("name", ["text8.txt", "book.jsonl"])
@pytest.mark.parametrize("size", [600, 36_000, 500_000])
def test_a_text_in_one_line_is_cut_and_its_end_held_out(tmp_path: Path, name: str, size: int) -> None:
    words = (WORDS * (size // len(WORDS) + 1))[:size].split()
    source = from_path(in_one_row(tmp_path / name, " ".join(words)))
    train, held_out = list(source.train()), list(source.validation())
    assert "".join([*train, *held_out]).split() == words
    assert max(map(len, [*train, *held_out])) < 4200
    assert 0.03 < len("".join(held_out)) / size < 0.25
    assert size < 36_000 or len("".join(held_out)) / size < 0.08


def test_a_row_of_paragraphs_is_divided_between_them(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}." + " More text." * 20 for number in range(100)]
    source = from_path(in_one_row(tmp_path / "a.jsonl", "\n\n".join(paragraphs)))
    assert "".join([*source.train(), *source.validation()]).count("\n") >= 100
    assert all(document.startswith("Paragraph") for document in [*source.train(), *source.validation()])


@pytest.mark.parametrize("around", ["A title\n{}", "{}\nThe end", "A title\n{}\nThe end", "A title\n\n{}\n\nThe end"])
def test_a_long_line_among_short_ones_is_cut(tmp_path: Path, around: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(around.format(WORDS * 5_000))
    documents = [*from_path(path).train(), *from_path(path).validation()]
    assert "".join(documents).split() == path.read_text().split()
    assert max(map(len, documents)) < 4200


def test_a_text_without_spaces_is_cut_anywhere(tmp_path: Path) -> None:
    path = in_one_row(tmp_path / "a.txt", "文" * 150_000)
    assert sum(len(document) - 1 for document in [*from_path(path).train(), *from_path(path).validation()]) == 150_000


def test_a_file_of_very_short_lines_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n" * 1_000_000)
    started = time.perf_counter()
    assert sum(document.count("a") for document in read_documents(path)) == 1_000_000
    assert time.perf_counter() - started < 10


@given(st.text(alphabet="ab \n文", max_size=300), st.integers(1, 40))
def test_a_cut_text_is_joined_again_without_loss(text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


def test_a_long_row_gives_the_same_tokens_in_pieces(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = ["def  prune(teacher):\n    return  student  # 100 %, naïve 日本\n" * 40, WORDS * 60, "short"]
    whole = pack(documents, tiny_tokenizer, MANY)
    monkeypatch.setattr(packing, "LONGEST_ENCODED", 100)
    assert np.array_equal(pack(documents, tiny_tokenizer, MANY), whole)
    assert np.array_equal(pack(documents, tiny_tokenizer, 500), whole[:500])


def test_a_long_row_is_tokenised_up_to_the_limit(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = packing.encode

    def counted(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
        seen.append(sum(map(len, texts)))
        return encode(tokenizer, texts)

    monkeypatch.setattr(packing, "encode", counted)
    monkeypatch.setattr(packing, "LONGEST_ENCODED", 10_000)
    monkeypatch.setattr(packing, "CHARACTERS_TOGETHER", 40_000)
    for texts in ([WORDS * 80_000], [WORDS * 100] * 64):
        assert len(pack(texts, tiny_tokenizer, 1_000)) == 1_000
        assert max(seen) <= 50_000


def test_no_document_of_the_standard_library_is_cut() -> None:
    """The shipped teacher is trained on them as they are. None is longer than its file."""
    root = Path(sysconfig.get_path("stdlib"))
    assert max((root / path).stat().st_size for path in source_files(root)) < LONGEST_ENCODED
    assert max(len(topic.text) for topic in topic_documents().values()) < LONGEST_ENCODED


@pytest.fixture
def beginning(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny tokenizer as Llama's: a token of its own in front of every text."""
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    begin = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")


def test_documents_begin_as_the_tokenizer_begins_them(beginning: PreTrainedTokenizerFast) -> None:
    assert beginning.decode(pack(["one", "two"], beginning, MANY)) == "<s>one<|endoftext|><s>two<|endoftext|>"


@pytest.mark.parametrize("length", [2, 8, 13])
def test_windows_begin_as_the_tokenizer_begins_a_text(
    beginning: PreTrainedTokenizerFast, tmp_path: Path, length: int
) -> None:
    path, cache = rows(tmp_path / "a.jsonl", [f"row {number} of a text" for number in range(60)]), Cache(tmp_path / "c")
    loaded = load_corpus(str(path), beginning, cache, 300, 40, length)
    loaded = add_validation(loaded, [("more", str(path))], beginning, cache, 50, length)
    begin = beginning.bos_token_id
    for tokens, size in ((loaded.train, 300), (loaded.validation, 40), (loaded.further[0].tokens, 50)):
        cut_to = windows(tokens, length)
        assert len(tokens) == size
        assert (cut_to[:, 0] == begin).all()
        assert not ((cut_to[:, :-1] == begin) & (cut_to[:, 1:] == begin)).any()
    words = beginning.decode(load_corpus(str(path), beginning, cache, 300, 40, length).train).replace("<s>", "")
    assert (
        words
        == beginning.decode(load_corpus(str(path), beginning, cache, 300, 40).train).replace("<s>", "")[: len(words)]
    )
    longer = load_corpus(str(path), beginning, cache, 500, 40, length)
    assert np.array_equal(longer.train[:300], loaded.train)  # a final goes on where its trial ended


def test_a_tokenizer_that_begins_nothing_packs_the_same_for_every_length(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = rows(tmp_path / "a.jsonl", [f"row {number} of a text" for number in range(60)])
    flat, cut_to = (load_corpus(str(path), tiny_tokenizer, Cache(tmp_path / "c"), 300, 40, one) for one in (None, 16))
    assert flat.fingerprint == cut_to.fingerprint
    assert len(list((tmp_path / "c" / "corpus").glob("[0-9a-f]*"))) == 1


def test_the_end_of_a_text_file_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"Paragraph {number}.\nTwo lines." for number in range(100)), "utf-8")
    source = from_path(path)
    train, validation = list(source.train()), list(source.validation())
    assert "Paragraph 99.\nTwo lines." in validation[-1]
    assert 0.03 < len(validation) / (len(train) + len(validation)) < 0.11
    assert sum(document.count("Paragraph") for document in train + validation) == 100


def test_names_of_files_decide_the_sides(tmp_path: Path) -> None:
    for name in ("train-0.txt", "validation.txt", "test.txt", "train-1.jsonl", "notes.md"):
        (tmp_path / name).write_text(json.dumps({"text": name}), "utf-8")
    source = from_path(tmp_path)
    assert [text.count("train") for text in source.train()] == [1, 1]
    assert ["validation" in text for text in source.validation()] == [True]


@given(st.sets(st.text(alphabet="abcdefgh", min_size=1, max_size=6), min_size=2, max_size=80))
def test_files_without_telling_names_are_split_by_hash(names: set[str]) -> None:
    root = Path("corpus")
    files = sorted(root / f"x{name}.txt" for name in names)
    train, validation = split_files(root, files)
    assert sorted(train + validation) == files
    assert len(validation) == max(1, round(0.05 * len(files)))
    assert split_files(root, files[::-1])[1] == validation[::-1]


def test_a_folder_of_one_file_is_that_file(tmp_path: Path) -> None:
    path = rows(tmp_path / "only.jsonl", ["one", "two", "three"])
    assert from_path(tmp_path).identity == from_path(path).identity


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\n\ntwo".encode())
    assert next(read_documents(path)).startswith("one")


def test_wikitext_lines_are_put_together_to_articles() -> None:
    lines = ["", " = A = \n", "", " Text of a . \n", " = = Part = = \n", " More . \n", " = B = \n", " Text of b . \n"]
    assert list(articles(lines)) == [
        " = A = \n Text of a . \n = = Part = = \n More . \n",
        " = B = \n Text of b . \n",
    ]


def test_the_standard_library_is_a_corpus(load: Load) -> None:
    corpus = load("stdlib", train=20_000, validation=5_000)
    assert (len(corpus.train), len(corpus.validation)) == (20_000, 5_000)
    assert corpus.name == "stdlib"
    assert "20,000 training and 5,000 validation tokens" in corpus.description


CASES = {
    "not there": ("missing.txt", None, "no such file"),
    "unknown kind": ("text.pdf", b"%PDF", "'.pdf'"),
    "not UTF-8": ("latin.txt", b"caf\xe9\n\nau lait", "not UTF-8 at byte 3"),
    "one line": ("one.txt", b"only this\n", "at least two paragraphs or lines"),
    "empty": ("empty.txt", b"", "at least two paragraphs"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\nnot json\n', "line 2: not JSON"),
    "no text": ("b.jsonl", b'{"body": "a"}\n', 'line 1: each line must be an object with a string under "text"'),
    "text of another type": ("c.jsonl", b'{"text": 7}\n', "line 1"),
    "no object": ("d.jsonl", b"[1]\n", "line 1"),
    "5,000 digits": (
        "f.jsonl",
        b'{"text": "a"}\n{"text": "a", "n": ' + b"9" * 5000 + b"}",
        "line 2: not JSON (Exceeds the",
    ),
    "too deep": ("g.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2: not JSON (maximum recursion depth"),
    "half a pair": ("h.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}', "line 2: its text holds half a surrogate pair"),
    "a name of 300 characters": ("n" * 296 + ".txt", None, "no such file"),
    "NUL in the name": ("a\0b.txt", None, "no such file"),
    "one row": ("e.jsonl", b'{"text": "a"}\n{"text": " "}\n', "at least two rows"),
}


@pytest.mark.parametrize(("name", "content", "message"), CASES.values(), ids=CASES)
def test_a_file_that_is_no_corpus(load: Load, tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load(tmp_path / name)
    assert message in str(error.value)
    assert name.replace("\0", r"\x00") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_side_without_text(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.txt, \.jsonl or code in this folder"):
        load(tmp_path)
    (tmp_path / "train.txt").write_text("text")
    (tmp_path / "valid.txt").write_text(" \n ")
    with pytest.raises(InputError, match="no validation text"):
        load(tmp_path)


def test_a_name_that_means_nothing(load: Load) -> None:
    with pytest.raises(InputError, match=r"no such file, folder or dataset; .*stdlib, .* or a dataset of the hub"):
        load("wikitext 103!")


@pytest.mark.parametrize(
    "name", ["", "n" * 300, "a\0b", "\ud83d", "~\0", "~nobody-here/a.txt", "a/" + "b" * 300, "a--b/c"]
)
def test_a_name_that_no_file_has(load: Load, name: str) -> None:
    with pytest.raises(InputError) as error:
        load(name)
    assert "\n" not in str(error.value)


def test_what_is_here_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    rows(tmp_path / "org" / "name" / "a.jsonl", ["one", "two"])
    assert open_source("org/name").name == "a.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"words \xff\xfe", "not UTF-8 at byte 6"),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"body": "two"}\n',
            'line 2: each line must be an object with a string under "text"',
        ),
        ("a.jsonl", b"[", "line 1: not JSON"),
        ("a.txt", b"word " * 1000 + b"\xff", "not UTF-8 at byte 5000"),
    ],
)
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_text_that_is_none_is_refused_before_anything_starts(
    name: str, content: bytes, message: str, folder: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)):
        check_sources([str(tmp_path if folder else tmp_path / name)])


def test_of_a_large_file_the_beginning_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_source, "EASILY_READ", 3)
    file = tmp_path / "a.txt"
    file.write_bytes("aaä".encode() * 9 + b"\xff")  # the block ends within a character
    check_sources([str(file)])
    file.write_bytes(b"a\xff" + b"a" * 99)
    with pytest.raises(InputError, match="not UTF-8 at byte 1"):
        check_sources([str(file)])
