"""Texts from files: the preparation of each known name, and a clear one-line error for wrong input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from search_spaces.errors import InputError
from trials.text.evaluation_text import DOCS_CHARACTERS, Passages, Text, TextTask, open_text, text_task
from trials.text.stdlib_text import topic_documents


def rows(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def opened(name: str, path: Path) -> Text:
    text = open_text(text_task(f"{name}={path}"))
    assert isinstance(text, Text)
    return text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "text.txt"


def test_a_text_of_ones_own_is_one_document(file: Path) -> None:
    file.write_text("One two.\n\n  Thrée \n", "utf-8")
    text = opened("mine", file)
    (document,) = text.documents
    assert text.stream == document.text == file.read_text("utf-8")
    assert (document.words, document.bytes) == (3, len(file.read_bytes()))


def test_rows_of_ones_own_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(rows("One two", "", "three"))
    text = opened("mine", path)
    assert text.stream == "One two\n\nthree"
    assert [document.words for document in text.documents] == [2, 1]


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_a_raw_wikitext_and_its_rows_are_the_same_text(tmp_path: Path, name: str) -> None:
    raw, jsonl = tmp_path / "wiki.test.raw", tmp_path / "wiki.jsonl"
    raw.write_text(" = A = \n \n One , two . \n \n = B = \n Three \n")
    jsonl.write_text(rows(" = A = \n", "", " One , two . \n", "", " = B = \n", " Three \n"))
    text = opened(name, raw)
    assert text == opened(name, jsonl)
    assert text.stream.startswith(" = A = \n\n\n\n\n One , two . \n")
    assert [document.text for document in text.documents] == [" = A =\n\nOne, two.\n", " = B =\nThree\n"]
    assert text.documents[0].words == len(["", "=", "A", "=", "One", ",", "two", ".", ""])
    assert text.documents[0].bytes == len(" = A = \n \n One , two . \n ")


def test_the_penn_treebank_is_its_sentences_in_one_line(file: Path) -> None:
    file.write_text(" no it was n't \n but <unk> N \n")
    text = opened("ptb", file)
    assert text.stream == "no it was n't but <unk> N"
    assert [(one.text, one.words, one.bytes) for one in text.documents] == [(text.stream, 7, len(text.stream))]


def test_lambada_is_passages(tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(rows("a b\n\nc", "d e"))
    assert open_text(text_task(f"lambada={path}")) == Passages("lambada", ("a b\n\nc", "d e"))


def test_a_known_name_needs_no_file() -> None:
    assert text_task("ptb") == TextTask("ptb", None)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("wikitext2", "'wikitext2': unknown; give one of wikitext-2, .*wikitext2=path"),
        ("mine=./nowhere.txt", r"mine: no such file: \./nowhere\.txt"),
        ("mine=/", "mine: no such file: /"),
        ("mine=", "'mine=': give one of"),
        ("=x.txt", "'=x.txt': give one of"),
        ("two words=x", "'two words=x': give one of"),
    ],
)
def test_a_wrong_task_is_refused_before_it_is_opened(argument: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_task(argument)


@pytest.mark.parametrize("name", ["mine", "wikitext-2", "ptb"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no text in .*text.txt"), (b" \n \n\n", "no text in"), (b"caf\xe9", "not UTF-8 at byte 3")],
)
def test_a_file_without_text_is_refused(file: Path, name: str, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_text(TextTask(name, file))


@pytest.mark.parametrize("name", ["mine", "wikitext-2", "ptb", "lambada"])
@pytest.mark.parametrize(
    ("content", "message"),
    [('{"text": "a b"}\n{"body": 1}\n', 'line 2.*"text"'), ("{", "line 1: not JSON"), ('{"text": " "}', "no text in")],
)
def test_rows_without_text_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        open_text(TextTask(name, path))


def test_lambada_in_another_kind_of_file_is_refused(file: Path) -> None:
    file.write_text("a b\n")
    with pytest.raises(InputError, match=r"lambada: .*is not a \.jsonl"):
        open_text(TextTask("lambada", file))


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103", "ptb", "lambada"])
def test_without_the_hub_the_way_on_is_a_file(name: str) -> None:
    with pytest.raises(InputError, match=rf"^task {name}: .*out of reach.*as a file: {name}=\./\w+"):
        open_text(TextTask(name, None))  # conftest.py disables the hub


def test_the_documentation_of_python_needs_no_file_and_no_hub() -> None:
    text = open_text(text_task("python-docs"))
    assert isinstance(text, Text)
    assert len(text.stream) == DOCS_CHARACTERS
    assert text == open_text(text_task("python-docs"))
    assert any(topic.text[:200] in text.stream for topic in topic_documents().values())


def test_a_python_without_documentation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="task python-docs: no text in this Python"):
        open_text(TextTask("python-docs", None))
