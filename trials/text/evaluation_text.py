"""The evaluation texts: the file or dataset of each, and its preparation."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import InputError
from trials.text.hub_text import HubDataset, column, prepared
from trials.text.stdlib_text import documentation
from trials.text.text_source import local_path, read_rows, read_text
from trials.text.wikitext import articles, detokenized, harness_words, hub_rows, joined

EFFICIENCY = "efficiency"  # the only task without text
PYTHON_DOCS = "python-docs"  # the language reference: text that every installation of Python has
DOCS_CHARACTERS = 2**16
ROWS = ".jsonl"
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Document:
    """One document after preparation. ``words`` and ``bytes`` count the original text."""

    text: str
    words: int
    bytes: int


@dataclass(frozen=True)
class Text:
    """A text for perplexities: ``stream`` is the whole text, ``documents`` are its parts for rolling likelihoods."""

    task: str
    stream: str
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Passages:
    """Passages whose last word is to be predicted."""

    task: str
    passages: tuple[str, ...]


@dataclass(frozen=True)
class TextTask:
    """A requested text: a known name, the user's own file, or both. ``path``, if not None, exists."""

    name: str
    path: Path | None


def text_task(argument: str) -> TextTask:
    """The task of an argument ``name`` or ``name=path``. The text is not read yet.

    Raises InputError for an unknown name without a file, and for a file that does not exist.
    """
    name, equals, path = argument.partition("=")
    names = ", ".join([*KNOWN, PYTHON_DOCS, EFFICIENCY])
    if not NAME.fullmatch(name) or (equals and not path):
        raise InputError(f"task {argument!r}: give one of {names}, or any text as name=path")
    if not equals and name not in (*KNOWN, PYTHON_DOCS):
        raise InputError(f"task {name!r}: unknown; give one of {names}, or any text as {name}=path")
    file = local_path(path) if equals else None
    if file and not os.path.isfile(file):
        raise InputError(f"task {name}: no such file: {path}; give a UTF-8 text, or a .jsonl with rows of text")
    return TextTask(name, file)


def open_text(task: TextTask) -> Text | Passages:
    """Read and prepare the text of a task, from its file, or from the hub if it has none.

    A .jsonl file has one ``{"text": ...}`` per row; any other file is plain text. A task with a known name gets the
    preparation of that name, also for a file.

    Raises InputError for a file that is not UTF-8, lacks the field or has no text, and for a hub that is out of reach
    (within seconds).
    """
    known = KNOWN.get(task.name)
    if task.path:
        rows = _rows_of_file(task.name, task.path, known)
    else:
        rows = [documentation(DOCS_CHARACTERS)] if task.name == PYTHON_DOCS else _rows_of_hub(task.name)
    if not any(map(str.strip, rows)):
        there = task.path or ("this Python" if task.name == PYTHON_DOCS else "the dataset")
        raise InputError(f"task {task.name}: no text in {there}; give a file with words in it")
    return (known.prepare if known else _plain)(task.name, rows)


def _rows_of_file(name: str, path: Path, known: _Known | None) -> list[str]:
    if path.suffix == ROWS:
        return list(read_rows(path))
    if known is None:
        return [read_text(path)]
    if known.rows is None:
        raise InputError(f'task {name}: {path} is not a .jsonl; give one with a row {{"text": ...}} for each passage')
    return known.rows(read_text(path))


def _rows_of_hub(name: str) -> list[str]:
    known = KNOWN[name]
    ways_on = f"give the text as a file: {name}=./{known.file}"
    wanted = HubDataset(f"task {name}", ways_on, known.dataset, known.config, known.revision)
    return list(column(wanted, prepared(wanted), "test", known.column))


def _plain(name: str, rows: Sequence[str]) -> Text:
    """The user's own text. Each row of a .jsonl is a document; any other file is one document."""
    documents = [row for row in rows if row.strip()]
    return Text(name, "\n\n".join(documents), tuple(_document(row) for row in documents))


def _wikitext(name: str, rows: Sequence[str]) -> Text:
    pages = articles(rows)
    documents = (Document(detokenized(page), harness_words(page), len(page.encode())) for page in pages)
    return Text(name, joined(rows), tuple(documents))


def _penn_treebank(name: str, rows: Sequence[str]) -> Text:
    """The sentences of the test split in one line, as in SparseGPT (datautils.py ``get_ptb``) and GPTQ's ``ptb-new``.

    GPTQ's older ``ptb`` and LLM-Pruner (datasets/ppl_dataset.py) join the validation split with empty lines, so their
    values differ. The text has no documents, so it counts as one.
    """
    text = " ".join(row.strip() for row in rows if row.strip())
    return Text(name, text, (_document(text),))


def _lambada(name: str, rows: Sequence[str]) -> Passages:
    return Passages(name, tuple(row for row in rows if row.strip()))


def _document(text: str) -> Document:
    return Document(text, len(text.split()), len(text.encode()))


@dataclass(frozen=True)
class _Known:
    """A text with a known name: its dataset on the hub, the usual name of its file, and its preparation.

    ``rows`` turns a plain text file into the dataset's rows; it is None if only a .jsonl can hold them.
    """

    dataset: str
    config: str | None
    column: str
    file: str
    rows: Callable[[str], list[str]] | None
    prepare: Callable[[str, Sequence[str]], Text | Passages]
    revision: str | None = None


def _wikitext_of(config: str) -> _Known:
    return _Known("Salesforce/wikitext", config, "text", "wiki.test.raw", hub_rows, _wikitext)


KNOWN = {
    "wikitext-2": _wikitext_of("wikitext-2-raw-v1"),
    "wikitext-103": _wikitext_of("wikitext-103-raw-v1"),
    "ptb": _Known(
        "ptb-text-only/ptb_text_only",
        None,
        "sentence",
        "ptb.test.txt",
        lambda text: text.split("\n"),
        _penn_treebank,
        revision="refs/convert/parquet",  # the main branch holds a script, which `datasets` no longer runs
    ),
    "lambada": _Known("EleutherAI/lambada_openai", "default", "text", "lambada_test.jsonl", None, _lambada),
}


def parse_tests(argument: str | None) -> tuple[TextTask, ...]:
    """The tasks of a comma-separated list of ``name`` or ``name=path``, with absolute paths. No text is read yet.

    Raises InputError for the task without text, for a file that does not exist, and for a repeated name.
    """
    tasks: dict[str, TextTask] = {}
    for part in (part.strip() for part in argument.split(",")) if argument else ():
        if part.partition("=")[0] == EFFICIENCY:
            raise InputError(f"--test {part}: not a text; measure it with python -m nas.evaluate")
        task = text_task(part)
        if task.name in tasks:
            raise InputError(f"--test {argument!r}: the name {task.name!r} occurs twice; give one text another name")
        tasks[task.name] = TextTask(task.name, task.path.resolve() if task.path else None)
    return tuple(tasks.values())
