"""Entries appear atomically, are built once, and do not change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trials.storage.cache import Cache, digest

parts = st.lists(
    st.text(max_size=4) | st.binary(max_size=4) | st.integers(-9, 99) | st.floats(allow_nan=False), max_size=4
)


@settings(max_examples=50, deadline=None)
@given(one=parts, other=parts)
def test_digest_tells_all_parts_apart(one: list[object], other: list[object]) -> None:
    same = [(type(part), str(part)) for part in one] == [(type(part), str(part)) for part in other]
    assert (digest(*one) == digest(*other)) == same


def test_digest_knows_where_a_part_ends() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", ""), digest(b"abc")}) == 5


def build(cache: Cache, text: str = "tokens") -> tuple[Path, int]:
    """Build the entry corpus/key. Returns it, and how often it was written."""
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "inner").mkdir()
        (folder / "inner" / "data.bin").write_text(text)
        (folder / "other.txt").write_text("beside it")

    return cache.build("corpus", "key", write), len(calls)


def test_built_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert not cache.has("corpus", "key")
    folder, calls = build(cache)
    assert (folder, calls, cache.has("corpus", "key")) == (tmp_path / "corpus" / "key", 1, True)
    assert build(cache) == (folder, 0)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "add", "manifest", "garble", "no manifest"])
def test_damaged_entry_is_built_again(tmp_path: Path, harm: str) -> None:
    cache = Cache(tmp_path)
    folder, _ = build(cache)
    data, manifest = folder / "inner" / "data.bin", folder / "manifest.json"
    {
        "truncate": lambda: os.truncate(data, 3),
        "flip": lambda: data.write_text("tokenS"),
        "remove": data.unlink,
        "add": lambda: (folder / "inner" / "more.bin").write_text(""),
        "manifest": lambda: os.truncate(manifest, 20),
        "garble": lambda: manifest.write_text("[[1], 2]"),
        "no manifest": manifest.unlink,
    }[harm]()
    assert not cache.has("corpus", "key")
    assert build(cache) == (folder, 1)
    assert data.read_text() == "tokens"
    assert sorted(file.name for file in folder.rglob("*")) == ["data.bin", "inner", "manifest.json", "other.txt"]
    assert cache.has("corpus", "key")


def test_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        cache.build("corpus", "key", write)
    assert not list((tmp_path / "corpus").iterdir())
    assert build(cache)[1] == 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a b"])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cache name"):
        Cache(tmp_path).has("corpus", name)


BUILDER = """
import os, sys, time
from pathlib import Path
from trials.storage.cache import Cache

def write(folder):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (folder / "data").write_text("half")
    time.sleep(float(sys.argv[3]))
    (folder / "data").write_text("whole")

print((Cache(Path(sys.argv[1])).build("corpus", "key", write) / "data").read_text())
"""


def start_builder(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", BUILDER, tmp_path / "cache", tmp_path / "log", str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_one_process_builds_and_the_others_wait(tmp_path: Path) -> None:
    builders = [start_builder(tmp_path, 0.5) for _ in range(4)]
    assert [builder.communicate()[0].strip() for builder in builders] == ["whole"] * 4
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_killed_builder_leaves_nothing_visible(tmp_path: Path) -> None:
    builder = start_builder(tmp_path, 600)
    while not (tmp_path / "log").exists():
        assert builder.poll() is None
        time.sleep(0.02)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    cache = Cache(tmp_path / "cache")
    assert not cache.has("corpus", "key")
    assert build(cache)[1] == 1
    names = sorted(path.name for path in (tmp_path / "cache" / "corpus").iterdir())
    assert names == ["key"]


def test_a_builder_that_is_killed_frees_the_entry_for_one_of_those_who_wait(tmp_path: Path) -> None:
    first = start_builder(tmp_path, 600)
    while not (tmp_path / "log").exists():
        assert first.poll() is None
        time.sleep(0.02)
    others = [start_builder(tmp_path, 0.1) for _ in range(3)]
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [builder.communicate()[0].strip() for builder in others] == ["whole"] * 3
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    assert [path.name for path in (tmp_path / "cache" / "corpus").iterdir()] == ["key"]
