"""Text sources with separate training and validation documents, from files and folders."""

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
PARAGRAPHS_OF = 4096  # characters; consecutive paragraphs of a .txt are joined to documents of about this length
BLANK_LINE = re.compile(r"\n\s*\n")
TRAIN_STEM = re.compile(r"train", re.IGNORECASE)
VALIDATION_STEM = re.compile(r"valid|dev", re.IGNORECASE)


@dataclass(frozen=True)
class TextSource:
    """Documents for training and for validation. ``identity`` changes whenever the documents change."""

    name: str
    identity: str
    train: Callable[[], Iterable[str]]
    validation: Callable[[], Iterable[str]]


def from_path(path: Path) -> TextSource:
    """The source of a ``.txt`` or ``.jsonl`` file, or of a folder of them.

    Raises InputError when ``path`` is neither, or when its text cannot be split into two sides.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
        if not files:
            raise InputError(f"corpus {path}: no .txt or .jsonl file in this folder; put text there, or use stdlib")
        return _from_files(path, files) if len(files) > 1 else _from_file(files[0])
    if not path.is_file():
        raise InputError(f"corpus {path}: no such file or folder; give a .txt or .jsonl file, a folder, or stdlib")
    if path.suffix not in SUFFIXES:
        raise InputError(f"corpus {path}: unknown file type {path.suffix!r}; give a .txt or .jsonl file")
    return _from_file(path)


def whole_from_path(path: Path) -> TextSource:
    """The source of a file or folder that is validation text only. It has no training documents.

    If a folder has files named ``valid*`` or ``dev*``, only they are used, because the others are likely to be training
    and test text. Raises InputError as `from_path` does.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
        files = [file for file in files if VALIDATION_STEM.match(file.stem)] or files
    else:
        files = [path]
    from_path(path)  # raises InputError by the same rules
    return TextSource(
        name=path.name or str(path),
        identity=digest("whole", *(part for file in files for part in (file.suffix, file_sha256(file)))),
        train=lambda: (),
        validation=lambda: (document for file in files for document in read_documents(file)),
    )


def split_files(root: Path, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The training files and the validation files among two or more ``files`` below ``root``.

    If some names begin with ``train`` and others with ``valid`` or ``dev``, those are the two sides, and other files
    are not used. Otherwise a hash of the relative path picks 5 % of the files, at least one, for validation.
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
        raise InputError(f"corpus {path}: it needs at least two {unit}, because the last 5 % are held out; add text")
    held_out = max(1, round(HELD_OUT * len(documents)))
    return documents[:-held_out], documents[-held_out:]


def read_documents(path: Path) -> Iterator[str]:
    """Yields the documents of a file that are not empty: groups of paragraphs of a .txt, or rows of a .jsonl."""
    if path.suffix == ".jsonl":
        yield from (row for row in read_rows(path) if row.strip())
    else:
        yield from _paragraph_groups(read_text(path))


def _paragraph_groups(text: str) -> Iterator[str]:
    """Yields groups of consecutive paragraphs. Paragraphs end at blank lines, or at line ends if there are none.

    Groups of a short text are shorter, so that there are about twenty, some of which can be held out. If there is only
    one group, its paragraphs are yielded instead.
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
    """Yields ``text`` of each row of a .jsonl, also if it is empty. Raises InputError naming a line without it."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"corpus {path}, line {number}: not JSON ({error.msg}); each line must be one object"
            ) from error
        document = row.get("text") if isinstance(row, dict) else None
        if not isinstance(document, str):
            raise InputError(f'corpus {path}, line {number}: each line must be an object with a string under "text"')
        yield document


def read_text(path: Path) -> str:
    """The whole text of a UTF-8 file, with or without a byte-order mark. Raises InputError when it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"corpus {path}: not UTF-8 at byte {error.start}; convert it with `iconv -t utf-8`") from error


def _relative(root: Path, file: Path) -> bytes:
    return file.relative_to(root).as_posix().encode()
