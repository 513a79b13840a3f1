"""The embedded corpus: its content, the split by file, and unusual files."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from trials.text.stdlib_text import (
    Document,
    is_validation,
    module_documents,
    source_files,
    stdlib_identity,
    training_documents,
    validation_documents,
    without_docstrings,
)


@dataclass(frozen=True)
class StdlibText:
    train: tuple[Document, ...]
    validation: tuple[Document, ...]


def read_stdlib_text(root: Path | None = None) -> StdlibText:
    return StdlibText(tuple(training_documents(root)), tuple(validation_documents(root)))


@pytest.fixture(scope="module")
def text() -> StdlibText:
    return read_stdlib_text()


def size(documents: Iterable[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def test_all_three_kinds_are_there_in_quantity(text: StdlibText) -> None:
    by_kind = {kind: size(d for d in text.train if d.kind == kind) for kind in ("topic", "docstrings", "source")}
    assert by_kind["topic"] > 300_000
    assert by_kind["docstrings"] > 1_000_000
    assert by_kind["source"] > 4_000_000


def test_no_file_is_on_both_sides(text: StdlibText) -> None:
    train = {document.origin for document in text.train if document.kind != "topic"}
    validation = {document.origin for document in text.validation}
    assert validation
    assert not train & validation
    assert not {document.text for document in text.train} & {document.text for document in text.validation}


def test_about_a_twentieth_of_the_bytes_is_held_out(text: StdlibText) -> None:
    assert 0.03 < size(text.validation) / (size(text.train) + size(text.validation)) < 0.07


def test_the_order_is_fixed_and_mixes_the_kinds(text: StdlibText) -> None:
    email = Path(sysconfig.get_path("stdlib")) / "email"
    assert read_stdlib_text(email) == read_stdlib_text(email)
    assert {document.kind for document in text.train[:50]} == {"topic", "docstrings", "source"}


def test_nothing_of_tests_tables_or_this_machine_is_in_it(text: StdlibText) -> None:
    origins = [PurePosixPath(document.origin) for document in text.train if document.kind == "source"]
    folders = {part for origin in origins for part in origin.parts[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "encodings", "__pycache__"}
    assert not [origin for origin in origins if origin.name.startswith("_sysconfigdata")]


def test_a_module_keeps_its_side_when_it_becomes_a_package(text: StdlibText) -> None:
    for document in text.train + text.validation:
        path = PurePosixPath(document.origin)
        if document.kind == "source" and path.name != "__init__.py":
            assert is_validation(path) == is_validation(path.with_suffix("") / "__init__.py")


def test_sources_without_docstrings_are_the_same_program(text: StdlibText) -> None:
    for document in text.validation:
        if document.kind == "source":
            left = [n for n in ast.walk(ast.parse(document.text)) if isinstance(n, ast.ClassDef | ast.FunctionDef)]
            assert not [node for node in left if ast.get_docstring(node) and node.body[0].lineno != node.lineno]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Doc."""\nx = 1\n', "x = 1\n"),
        ('def f():\n    """Doc\n    more."""\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    """Doc."""\n', "def f():\n    pass\n"),
        ('class A:\n    """é."""\n    def f(self):\n        "d"\n', "class A:\n    def f(self):\n        pass\n"),
        ('def f(): "Doc."\n', 'def f(): "Doc."\n'),
        ('def f():\n    "Doc."; return 1\n', 'def f():\n    "Doc."; return 1\n'),
        ("x = '''not a docstring'''\n", "x = '''not a docstring'''\n"),
    ],
)
def test_docstrings_are_taken_out_of_a_source(source: str, expected: str) -> None:
    stripped = without_docstrings(source, ast.parse(source))
    assert stripped == expected
    ast.parse(stripped)


def test_docstrings_stand_under_their_qualified_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""Top."""\nclass B:\n    def c(self):\n        """Deep\n\n        in."""\n')
    docstrings, source = module_documents(tmp_path, PurePosixPath("a.py"))
    assert docstrings.text == "a\n\nTop.\n\n\na.B.c\n\nDeep\n\nin.\n\n"
    assert source.text == "class B:\n    def c(self):\n        pass\n"


@pytest.mark.parametrize(
    "content",
    [b"x = '\xff'\n", b"# coding: no-such-encoding\n", b"x = '\0'\n", b"print 'python 2'\n", b"", b"\n\n"],
    ids=["undecodable", "unknown encoding", "null byte", "another Python's syntax", "empty", "blank"],
)
def test_a_file_that_cannot_be_read_or_is_empty_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.py").write_bytes(content)
    (tmp_path / "good.py").write_text("x = 1\n")
    read = read_stdlib_text(tmp_path)
    origins = {document.origin for document in read.train + read.validation if document.kind != "topic"}
    assert origins == {"good.py"}


def test_a_declared_encoding_is_honoured(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (document,) = module_documents(tmp_path, PurePosixPath("latin.py"))
    assert "'é'" in document.text


def test_left_out_folders_and_build_files_are_not_listed(tmp_path: Path) -> None:
    left_out = ["test/a.py", "json/tests/b.py", "site-packages/c.py", "encodings/d.py", "_sysconfigdata_linux.py"]
    for name in [*left_out, "json/decoder.py", "testing.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    assert [path.as_posix() for path in source_files(tmp_path)] == ["json/decoder.py", "testing.py"]


def test_the_identity_is_stable() -> None:
    assert stdlib_identity() == stdlib_identity()
