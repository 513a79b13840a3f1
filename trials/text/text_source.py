"""Text sources with separate training and validation documents, from files and folders."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import InputError
from trials.storage.cache import digest
from trials.storage.node_digests import sha256_on_node

SUFFIXES = (".txt", ".jsonl")
CODE = (
    ".py", ".pyi", ".js", ".jsx", ".ts", ".tsx", ".java", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs",
    ".go", ".rs", ".rb", ".php", ".swift", ".kt", ".scala", ".sh", ".sql", ".r", ".jl", ".lua",
)  # fmt: skip
BESIDE_CODE = (".md", ".rst", ".txt")  # read in a folder of code as well
NOT_CODE = frozenset({"node_modules", "__pycache__", "site-packages"})  # folders that hold nobody's own code
EASILY_READ = 2**24  # bytes; they take less than a second
HELD_OUT = 0.05
PARAGRAPHS_OF = 4096  # characters; consecutive paragraphs of a .txt are joined to documents of about this length
LONGEST_PARAGRAPH = 100_000  # characters; a longer one, such as a corpus in one line, is cut
SHORTEST_PIECE = 100  # characters of a document that is cut from a text without paragraphs
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


def local_path(name: str) -> Path:
    """``name`` as a path, after ``~`` is replaced where it names somebody's home folder.

    Ask ``os.path`` whether it exists: the methods of Path raise OSError or ValueError for a name that is too long or
    has a character that no path has.
    """
    try:
        return Path(os.path.expanduser(name))
    except ValueError:
        return Path(name)


def from_path(path: Path) -> TextSource:
    """The source of a ``.txt`` or ``.jsonl`` file, or of a folder of text or code.

    Raises InputError when ``path`` is neither, or when its text cannot be split into two sides.
    """
    files = text_files(path)
    return _from_files(path, files) if len(files) > 1 else _from_file(files[0])


def text_files(path: Path) -> list[Path]:
    """The files with text at ``path``, a file or a folder, in name order. Raises InputError for none.

    A folder is one of code if it has more files of `CODE` than ``.txt`` and ``.jsonl`` files. Then those of `CODE` and
    of `BESIDE_CODE` are read, except in hidden folders and those of `NOT_CODE`. Of any other folder, the ``.txt``
    and ``.jsonl`` files are read.
    """
    if os.path.isdir(path):
        there = sorted(file for file in path.rglob("*") if file.is_file())
        text = [file for file in there if file.suffix in SUFFIXES]
        own = [file for file in there if file.suffix in (*CODE, *BESIDE_CODE) and _is_own(path, file)]
        files = own if sum(file.suffix in CODE for file in own) > len(text) else text
        if not files:
            raise InputError(f"corpus {path}: no .txt, .jsonl or code in this folder; put text there, or use stdlib")
        return files
    if not os.path.isfile(path):
        raise InputError(f"corpus {path}: no such file or folder; give a .txt or .jsonl file, a folder, or stdlib")
    if path.suffix not in SUFFIXES:
        raise InputError(f"corpus {path}: unknown file type {path.suffix!r}; give a .txt or .jsonl file")
    return [path]


def check_text(path: Path) -> None:
    """Raise InputError when there is no text at ``path``, or when the beginning of its first file is no text.

    A file of at most `EASILY_READ` bytes is read whole.
    """
    first = text_files(path)[0]
    try:
        with first.open("rb") as file:
            block = file.read(EASILY_READ)
            if file.read(1):
                codecs.getincrementaldecoder("utf-8-sig")().decode(block)
                return
    except UnicodeDecodeError as error:
        raise _no_utf8(first, error) from error
    except OSError as error:
        raise _unreadable(first, error) from error
    for _ in read_documents(first):
        pass


def _are_code(files: Iterable[Path]) -> bool:
    return any(file.suffix in CODE for file in files)


def _is_own(root: Path, file: Path) -> bool:
    """Whether ``file`` is neither hidden below ``root`` nor somebody else's code."""
    parts = file.relative_to(root).parts
    return not any(part.startswith(".") for part in parts) and NOT_CODE.isdisjoint(parts)


def whole_from_path(path: Path) -> TextSource:
    """The source of a file or folder that is validation text only. It has no training documents.

    If a folder has files named ``valid*`` or ``dev*``, only they are used, because the others are likely to be training
    and test text. Raises InputError as `from_path` does.
    """
    if os.path.isdir(path):
        files = text_files(path)
        files = [file for file in files if VALIDATION_STEM.match(file.stem) and not _are_code(files)] or files
    else:
        files = [path]
    from_path(path)  # raises InputError by the same rules
    return TextSource(
        name=path.name or str(path),
        identity=digest("whole", *(part for file in files for part in (file.suffix, sha256_on_node(file)))),
        train=lambda: (),
        validation=lambda: (document for file in files for document in read_documents(file)),
    )


def split_files(root: Path, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The training files and the validation files among two or more ``files`` below ``root``.

    If some names begin with ``train`` and others with ``valid`` or ``dev``, those are the two sides, and other files
    are not used. In a folder of code such names mean nothing. There, and without such names, a hash of the relative
    path picks 5 % of the files, at least one, for validation.
    """
    train = [file for file in files if TRAIN_STEM.match(file.stem)]
    validation = [file for file in files if VALIDATION_STEM.match(file.stem)]
    if train and validation and not _are_code(files):
        return train, validation
    held_out = max(1, round(HELD_OUT * len(files)))
    chosen = set(sorted(files, key=lambda file: hashlib.sha256(_relative(root, file)).digest())[:held_out])
    return [file for file in files if file not in chosen], [file for file in files if file in chosen]


def _from_files(root: Path, files: Sequence[Path]) -> TextSource:
    train, validation = split_files(root, files)
    parts = [part for file in files for part in (_relative(root, file), sha256_on_node(file))]
    return TextSource(
        name=root.name or str(root),
        identity=digest("folder", *parts),
        train=lambda: (document for file in train for document in read_documents(file)),
        validation=lambda: (document for file in validation for document in read_documents(file)),
    )


def _from_file(path: Path) -> TextSource:
    return TextSource(
        name=path.name,
        identity=digest("file", path.suffix, sha256_on_node(path)),
        train=lambda: _split_documents(path)[0],
        validation=lambda: _split_documents(path)[1],
    )


def _split_documents(path: Path) -> tuple[list[str], list[str]]:
    """The documents of a file, and the last 5 % of them. A single document is cut into pieces first."""
    documents = list(read_documents(path))
    for smaller in (_paragraph_groups, _pieces):
        documents = list(smaller(documents[0])) if len(documents) == 1 else documents
    if len(documents) < 2:
        unit = "rows" if path.suffix == ".jsonl" else "paragraphs or lines"
        raise InputError(f"corpus {path}: it needs at least two {unit}, because the last 5 % are held out; add text")
    held_out = max(1, round(HELD_OUT * len(documents)))
    return documents[:-held_out], documents[-held_out:]


def read_documents(path: Path) -> Iterator[str]:
    """Yields the documents of a file that are not empty: rows of a .jsonl, groups of paragraphs of a .txt, or all."""
    if path.suffix == ".jsonl":
        yield from (row for row in read_rows(path) if row.strip())
    elif path.suffix == ".txt":
        yield from _paragraph_groups(read_text(path))
    else:
        yield from (text for text in [read_text(path)] if text.strip())


def _paragraph_groups(text: str) -> Iterator[str]:
    """Yields groups of consecutive paragraphs. Paragraphs end at blank lines, or at line ends if there are none.

    Groups of a short text are shorter, so that there are about twenty, some of which can be held out. If there is only
    one group, its paragraphs are yielded instead. A paragraph above `LONGEST_PARAGRAPH` is cut into pieces.
    """
    wanted = min(PARAGRAPHS_OF, len(text) // 20)
    between = "\n\n" if BLANK_LINE.search(text.strip()) else "\n"
    groups: list[list[str]] = []
    length = wanted
    for paragraph in BLANK_LINE.split(text) if between == "\n\n" else text.split("\n"):
        if not paragraph.strip():
            continue
        if length >= wanted or len(paragraph) > LONGEST_PARAGRAPH:
            groups.append([])
            length = 0
        groups[-1].append(paragraph.strip("\n"))
        length += len(groups[-1][-1])
    if len(groups) == 1:
        groups = [[one] for one in groups[0]]
    for group in groups:
        yield from _pieces(group[0]) if len(group[0]) > LONGEST_PARAGRAPH else (between.join(group) + "\n",)


def _pieces(text: str) -> Iterator[str]:
    """Yields ``text`` in about twenty equal documents, or more of about `PARAGRAPHS_OF` characters, cut at spaces."""
    count = max(1, min(20, len(text) // SHORTEST_PIECE), round(len(text) / PARAGRAPHS_OF))
    start = 0
    for left in range(count, 0, -1):
        end = _place_to_cut(text, start, start + (len(text) - start) // left)
        if text[start:end].strip():
            yield text[start:end].strip() + "\n"
        start = end


def cut(text: str, size: int) -> Iterator[str]:
    """Yields ``text`` in pieces of at most ``size`` characters. Nothing is lost: joined, they are ``text``.

    A cut is before a single space, the last one in reach, or at ``size`` if there is none. A byte-level tokenizer gives
    the same tokens for the pieces as for the whole, because there a space begins a word.
    """
    start = 0
    while start < len(text):
        end = _place_to_cut(text, start, start + size)
        yield text[start:end]
        start = end


def _place_to_cut(text: str, start: int, end: int) -> int:
    """The place of the last single space between ``start`` and ``end``, or ``end`` if there is none."""
    if end >= len(text):
        return len(text)
    place = text.rfind(" ", start + 1, end + 1)
    while place > 0 and (text[place - 1].isspace() or text[place + 1 : place + 2].isspace()):
        place = text.rfind(" ", start + 1, place)
    return place if place > 0 else end


def read_rows(path: Path) -> Iterator[str]:
    """Yields ``text`` of each row of a .jsonl, also if it is empty. Raises InputError naming a line without it."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of 5,000 digits, and 5,000 lists in each other
            raise InputError(
                f"corpus {path}, line {number}: not JSON ({_reason(error)}); each line must be one object"
            ) from error
        document = row.get("text") if isinstance(row, dict) else None
        if not isinstance(document, str):
            raise InputError(f'corpus {path}, line {number}: each line must be an object with a string under "text"')
        if not _is_text(document):
            raise InputError(
                f"corpus {path}, line {number}: its text holds half a surrogate pair, which is no character; "
                "write it again from UTF-8"
            )
        yield document


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def _is_text(text: str) -> bool:
    """Whether ``text`` has a UTF-8 form. JSON can write characters that have none, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """The whole text of a UTF-8 file, with or without a byte-order mark.

    Raises InputError when it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise _no_utf8(path, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"corpus {path}: cannot be read ({error.strerror}); give a file that can")


def _no_utf8(path: Path, error: UnicodeDecodeError) -> InputError:
    return InputError(f"corpus {path}: not UTF-8 at byte {error.start}; convert it with `iconv -t utf-8`")


def _relative(root: Path, file: Path) -> bytes:
    return file.relative_to(root).as_posix().encode()
