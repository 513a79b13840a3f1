"""The texts that models are judged on: which file or dataset each is, and how it is prepared before it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import InputError
from trials.text.hub_text import HubDataset, column, prepared
from trials.text.text_source import read_rows, read_text
from trials.text.wikitext import articles, detokenized, harness_words, hub_rows, joined

EFFICIENCY = "efficiency"  # the one task that has no text
ROWS = ".jsonl"
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Document:
    """One document as a model reads it; ``words`` and ``bytes`` are of the original, before any preparation."""

    text: str
    words: int
    bytes: int


@dataclass(frozen=True)
class Text:
    """A text for perplexities: ``stream`` is all of it at a stretch, ``documents`` are what is read one by one."""

    task: str
    stream: str
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Passages:
    """Passages of which the last word is to be guessed."""

    task: str
    passages: tuple[str, ...]


@dataclass(frozen=True)
class TextTask:
    """A text that was asked for: by a known name, with a file of one's own, or both. ``path`` exists."""

    name: str
    path: Path | None


def text_task(argument: str) -> TextTask:
    """The task that ``name`` or ``name=path`` asks for; nothing is read yet.

    Raises InputError for a name that is not known and has no file, and for a file that is not there.
    """
    name, equals, path = argument.partition("=")
    names = ", ".join([*KNOWN, EFFICIENCY])
    if not NAME.fullmatch(name) or (equals and not path):
        raise InputError(f"task {argument!r}: give one of {names}, or any text as name=path")
    if not equals and name not in KNOWN:
        raise InputError(f"task {name!r}: unknown; give one of {names}, or any text as {name}=path")
    file = Path(path).expanduser() if equals else None
    if file and not file.is_file():
        raise InputError(f"task {name}: no such file: {path}; give a UTF-8 text, or a .jsonl with rows of text")
    return TextTask(name, file)


def open_text(task: TextTask) -> Text | Passages:
    """Read the text of a task, from its file or else from the hub, and prepare it.

    A file is a .jsonl, one ``{"text": ...}`` in each row, or else plain text. A known name keeps its preparation.
    Raises InputError for a file that is not UTF-8, lacks the field or has no text in it, and within seconds for a hub
    that is out of reach.
    """
    known = KNOWN.get(task.name)
    rows = _rows_of_file(task.name, task.path, known) if task.path else _rows_of_hub(task.name)
    if not any(map(str.strip, rows)):
        raise InputError(f"task {task.name}: no text in {task.path or 'the dataset'}; give a file with words in it")
    return (known.prepare if known else _plain)(task.name, rows)


def _rows_of_file(name: str, path: Path, known: _Known | None) -> list[str]:
    if path.suffix == ROWS:
        return list(read_rows(path))
    if known is None:
        return [read_text(path)]
    if known.rows is None:
        raise InputError(f'task {name}: {path} is no .jsonl; give one with a row {{"text": ...}} for each passage')
    return known.rows(read_text(path))


def _rows_of_hub(name: str) -> list[str]:
    known = KNOWN[name]
    ways_on = f"give the text as a file: {name}=./{known.file}"
    wanted = HubDataset(f"task {name}", ways_on, known.dataset, known.config, known.revision)
    return list(column(wanted, prepared(wanted), "test", known.column))


def _plain(name: str, rows: Sequence[str]) -> Text:
    """A text of one's own: each row of a .jsonl, or a whole other file, is a document."""
    documents = [row for row in rows if row.strip()]
    return Text(name, "\n\n".join(documents), tuple(_document(row) for row in documents))


def _wikitext(name: str, rows: Sequence[str]) -> Text:
    pages = articles(rows)
    documents = (Document(detokenized(page), harness_words(page), len(page.encode())) for page in pages)
    return Text(name, joined(rows), tuple(documents))


def _penn_treebank(name: str, rows: Sequence[str]) -> Text:
    """The sentences of the test split in one line, as in SparseGPT (datautils.py ``get_ptb``) and GPTQ's ``ptb-new``.

    GPTQ's older ``ptb`` and LLM-Pruner (datasets/ppl_dataset.py) join the validation split by empty lines: their
    figures are others. There are no documents in this text, so all of it counts as one.
    """
    text = " ".join(row.strip() for row in rows if row.strip())
    return Text(name, text, (_document(text),))


def _lambada(name: str, rows: Sequence[str]) -> Passages:
    return Passages(name, tuple(row for row in rows if row.strip()))


def _document(text: str) -> Document:
    return Document(text, len(text.split()), len(text.encode()))


@dataclass(frozen=True)
class _Known:
    """A text with a name: its dataset on the hub, an example of its file, and its preparation.

    ``rows`` makes the dataset's rows of a plain text file; None where only a .jsonl can hold them.
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
        revision="refs/convert/parquet",  # the main branch holds a script, which `datasets` has ceased to run
    ),
    "lambada": _Known("EleutherAI/lambada_openai", "default", "text", "lambada_test.jsonl", None, _lambada),
}


def parse_tests(argument: str | None) -> tuple[TextTask, ...]:
    """The tasks of a comma-separated list of ``name`` or ``name=path``, paths made absolute, none read yet.

    Raises InputError for what is no text, for a file that is not there, and for a name that is there twice.
    """
    tasks: dict[str, TextTask] = {}
    for part in (part.strip() for part in argument.split(",")) if argument else ():
        if part.partition("=")[0] == EFFICIENCY:
            raise InputError(f"--test {part}: is no text; python -m nas.evaluate measures it")
        task = text_task(part)
        if task.name in tasks:
            raise InputError(f"--test {argument!r}: {task.name!r} is there twice; give one of them another name")
        tasks[task.name] = TextTask(task.name, task.path.resolve() if task.path else None)
    return tuple(tasks.values())
