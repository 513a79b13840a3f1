"""The corpus ``stdlib``: text of the Python installation itself, which needs no download.

It has three kinds of documents. They are read from files without importing modules, except `pydoc_data.topics`.

- `topic`: one entry of `pydoc_data.topics`, the language reference as `help()` shows it;
- `docstrings`: all docstrings of one module, each under its qualified name;
- `source`: the source of one module without its docstrings, which are a document of their own.

The text is under Python's own licence, the PSF licence.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

VALIDATION_SHARE = 0.05
# A changed salt moves modules between the sides. The shipped teacher would then have trained on its validation text.
SPLIT_SALT = "stdlib-split-0"

# Tests are many and similar, `encodings` holds generated tables, and `pydoc_data` is already included as topics.
LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
)
# Files that the build generates. They hold the paths and flags of one machine.
LEFT_OUT_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-")

_NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """One document. ``kind`` is topic, docstrings or source; ``origin`` is a topic's name or a relative path."""

    kind: str
    origin: str
    text: str


def training_documents(root: Path | None = None) -> Iterator[Document]:
    """Yields the training documents: the topics, and all files below ``root`` that are not held out.

    ``root`` is by default the standard library of the running interpreter. The split is by file, so a module's
    docstrings and source are on the same side. All topics are training text. The order is a fixed shuffle, so that the
    first documents are a sample of all; each file is read when it is needed. Files that cannot be decoded in their
    declared encoding, or that this Python cannot parse, are left out.
    """
    return _documents(root or _stdlib(), validation=False)


def validation_documents(root: Path | None = None) -> Iterator[Document]:
    """Yields the documents of the held-out files, about 5 % of the bytes; otherwise as `training_documents`."""
    return _documents(root or _stdlib(), validation=True)


def stdlib_identity() -> str:
    """A digest of the documents of the running interpreter. It reads the files without parsing them."""
    root = _stdlib()
    hashed = hashlib.sha256(f"stdlib {SPLIT_SALT} {VALIDATION_SHARE} {platform.python_version()}".encode())
    for path in [*source_files(root), PurePosixPath("pydoc_data/topics.py")]:
        hashed.update(path.as_posix().encode())
        hashed.update(hashlib.sha256((root / path).read_bytes() if (root / path).exists() else b"").digest())
    return hashed.hexdigest()


def source_files(root: Path) -> list[PurePosixPath]:
    """The Python files that are used as text, relative to ``root``, sorted."""
    relative = (PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*.py"))
    return sorted(path for path in relative if not _left_out(path))


def is_validation(path: PurePosixPath) -> bool:
    """Whether a file is held out. ``path`` is relative to the root of the standard library.

    The hash is of the module's name, so that `zipfile.py` stays on its side when a later Python has
    `zipfile/__init__.py`.
    """
    digest = hashlib.sha256(f"{SPLIT_SALT}:{module_name(path)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64


def module_name(path: PurePosixPath) -> str:
    """The module of a file: `json/decoder.py` is json.decoder, and `json/__init__.py` is json."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def topic_documents() -> dict[str, Document]:
    """The entries of `pydoc_data.topics` by name; empty if the installation lacks that module."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {name: Document("topic", name, text.strip() + "\n") for name, text in topics.items()}


def documentation(characters: int) -> str:
    """About the first ``characters`` of the language reference, in the fixed order of the training documents.

    Empty if the installation lacks `pydoc_data.topics`.
    """
    topics, text = topic_documents(), ""
    for name in sorted(topics, key=lambda name: _shuffled(("topic", name))):
        if len(text) >= characters:
            break
        text += topics[name].text + "\n"
    return text[:characters]


def module_documents(root: Path, path: PurePosixPath) -> Iterator[Document]:
    """Yields the docstrings and the source of one file, if they are not empty."""
    try:
        with tokenize.open(root / path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # SyntaxError: unknown encoding or other Python's syntax; ValueError: undecodable or null bytes
    docstrings = "\n\n".join(_docstrings(tree, module_name(path)))
    code = without_docstrings(source, tree).strip("\n")
    for kind, text in (("docstrings", docstrings), ("source", code)):
        if text.strip():
            yield Document(kind, path.as_posix(), text + "\n")


def without_docstrings(source: str, tree: ast.Module) -> str:
    """The source without its docstrings. Only whole lines are removed; a body of only a docstring becomes `pass`."""
    lines: list[str | None] = list(source.split("\n"))
    for node in ast.walk(tree):
        if not isinstance(node, _Documented) or ast.get_docstring(node, clean=False) is None:
            continue
        first, last = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
        if _shares_a_line(node, first, last):
            continue
        indent = " " * node.body[0].col_offset
        lines[first - 1 : last] = [None] * (last - first + 1)
        if len(node.body) == 1 and not isinstance(node, ast.Module):
            lines[first - 1] = indent + "pass"
    return "\n".join(line for line in lines if line is not None)


def _shares_a_line(node: _Documented, first: int, last: int) -> bool:
    header = 0 if isinstance(node, ast.Module) else node.lineno
    return header == first or (len(node.body) > 1 and node.body[1].lineno == last)


def _docstrings(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, _Documented):
        text = ast.get_docstring(node, clean=False)
        if text and text.strip():
            yield f"{name}\n\n{inspect.cleandoc(text).strip()}\n"
    for child in ast.iter_child_nodes(node):
        below = f"{name}.{child.name}" if isinstance(child, _NAMED) else name
        yield from _docstrings(child, below)


def _left_out(path: PurePosixPath) -> bool:
    return bool(LEFT_OUT_FOLDERS.intersection(path.parts)) or any(
        part.startswith(LEFT_OUT_PREFIXES) for part in path.parts
    )


def _documents(root: Path, validation: bool) -> Iterator[Document]:
    topics = {} if validation else topic_documents()
    files = {path.as_posix(): path for path in source_files(root) if is_validation(path) == validation}
    modules = [(kind, origin) for kind in ("docstrings", "source") for origin in files]
    read: dict[str, dict[str, Document]] = {}
    for kind, origin in sorted([("topic", name) for name in topics] + modules, key=_shuffled):
        if kind == "topic":
            yield topics[origin]
            continue
        if origin not in read:
            read[origin] = {document.kind: document for document in module_documents(root, files[origin])}
        if kind in read[origin]:
            yield read[origin].pop(kind)


def _shuffled(place: tuple[str, str]) -> str:
    return hashlib.sha256(":".join(place).encode()).hexdigest()


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))
