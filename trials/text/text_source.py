"""Where text comes from: two sides of documents that never mix, and files and folders as such sources."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import InputError
from trials.storage.cache import digest
from trials.storage.durable import file_sha256

SUFFIXES = (".txt", ".jsonl")
HELD_OUT = 0.05
PARAGRAPHS_OF = 4096  # characters: consecutive paragraphs of a .txt up to about this length are one document
BLANK_LINE = re.compile(r"\n\s*\n")
TRAIN_STEM = re.compile(r"train", re.IGNORECASE)
VALIDATION_STEM = re.compile(r"valid|dev", re.IGNORECASE)


@dataclass(frozen=True)
class TextSource:
    """Documents for training and for validation. ``identity`` differs whenever the documents do."""

    name: str
    identity: str
    train: Callable[[], Iterable[str]]
    validation: Callable[[], Iterable[str]]


def from_path(path: Path) -> TextSource:
    """A ``.txt`` or ``.jsonl`` file, or a folder of them. Raises InputError when it is neither, or cannot be split."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
        if not files:
            raise InputError(f"corpus {path}: no .txt or .jsonl file in this folder; put text there, or use stdlib")
        return _from_files(path, files) if len(files) > 1 else _from_file(files[0])
    if not path.is_file():
        raise InputError(f"corpus {path}: no such file or folder; give a .txt or .jsonl file, a folder, or stdlib")
    if path.suffix not in SUFFIXES:
        raise InputError(f"corpus {path}: unknown kind of file {path.suffix!r}; text is read from .txt and .jsonl")
    return _from_file(path)


def whole_from_path(path: Path) -> TextSource:
    """A file or folder given as validation text alone: all of it is validation, nothing is held out of anything.

    Where a folder has files named ``valid*`` or ``dev*``, they are it; the others are likely to be training and test.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
        files = [file for file in files if VALIDATION_STEM.match(file.stem)] or files
    else:
        files = [path]
    from_path(path)  # the same rules for what is text at all
    return TextSource(
        name=path.name or str(path),
        identity=digest("whole", *(part for file in files for part in (file.suffix, file_sha256(file)))),
        train=lambda: (),
        validation=lambda: (document for file in files for document in read_documents(file)),
    )


def split_files(root: Path, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The training and the validation files among two or more ``files`` below ``root``.

    Names decide when some begin with ``train`` and others with ``valid`` or ``dev``: those are the sides and the
    rest is not read. Otherwise a hash of the relative path picks 5 % of the files, at least one, for validation.
    """
    train = [file for file in files if TRAIN_STEM.match(file.stem)]
    validation = [file for file in files if VALIDATION_STEM.match(file.stem)]
    if train and validation:
        return train, validation
    held_out = max(1, round(HELD_OUT * len(files)))
    chosen = set(sorted(files, key=lambda file: hashlib.sha256(_relative(root, file)).digest())[:held_out])
    return [file for file in files if file not in chosen], [file for file in files if file in chosen]


def _from_files(root: Path, files: Sequence[Path]) -> TextSource:
    train, validation = split_files(root, files)
    parts = [part for file in files for part in (_relative(root, file), file_sha256(file))]
    return TextSource(
        name=root.name or str(root),
        identity=digest("folder", *parts),
        train=lambda: (document for file in train for document in read_documents(file)),
        validation=lambda: (document for file in validation for document in read_documents(file)),
    )


def _from_file(path: Path) -> TextSource:
    return TextSource(
        name=path.name,
        identity=digest("file", path.suffix, file_sha256(path)),
        train=lambda: _split_documents(path)[0],
        validation=lambda: _split_documents(path)[1],
    )


def _split_documents(path: Path) -> tuple[list[str], list[str]]:
    documents = list(read_documents(path))
    if len(documents) < 2:
        unit = "rows" if path.suffix == ".jsonl" else "paragraphs or lines"
        raise InputError(f"corpus {path}: its last 5 % are held out, which takes at least two {unit}; add text to it")
    held_out = max(1, round(HELD_OUT * len(documents)))
    return documents[:-held_out], documents[-held_out:]


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file, without empty ones: groups of paragraphs of a .txt, ``text`` of each row of a .jsonl."""
    if path.suffix == ".jsonl":
        yield from (row for row in read_rows(path) if row.strip())
    else:
        yield from _paragraph_groups(read_text(path))


def _paragraph_groups(text: str) -> Iterator[str]:
    """Paragraphs end at blank lines, or in a text without any at each line's end.

    Shorter groups for a short text, so that there are twenty of them to hold some out of; where one would be all, its
    paragraphs.
    """
    wanted = min(PARAGRAPHS_OF, len(text) // 20)
    between = "\n\n" if BLANK_LINE.search(text.strip()) else "\n"
    groups: list[list[str]] = [[]]
    for paragraph in BLANK_LINE.split(text) if between == "\n\n" else text.split("\n"):
        if paragraph.strip():
            groups[-1].append(paragraph.strip("\n"))
        if groups[-1] and sum(map(len, groups[-1])) >= wanted:
            groups.append([])
    if not groups[-1]:
        groups.pop()
    if len(groups) == 1:
        groups = [[one] for one in groups[0]]
    yield from (between.join(group) + "\n" for group in groups)


def read_rows(path: Path) -> Iterator[str]:
    """``text`` of each row of a .jsonl, empty ones included. Raises InputError naming the line that has none."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"corpus {path}, line {number}: not JSON ({error.msg}); each line is one object"
            ) from error
        document = row.get("text") if isinstance(row, dict) else None
        if not isinstance(document, str):
            raise InputError(f'corpus {path}, line {number}: each line is an object with a string under "text"')
        yield document


def read_text(path: Path) -> str:
    """The whole file, which must be UTF-8, with or without a mark at its start; InputError when it is not."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"corpus {path}: not UTF-8 at byte {error.start}; convert it, `iconv -t utf-8`") from error


def _relative(root: Path, file: Path) -> bytes:
    return file.relative_to(root).as_posix().encode()
