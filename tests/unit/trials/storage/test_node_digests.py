"""Large files are read once on a node, whatever number of processes wants them, and a change is seen all the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trials.storage import node_digests
from trials.storage.cache import Cache
from trials.storage.node_digests import COUNTS_SECONDS, SMALL_BYTES, sha256_on_node

ROOT = Path(__file__).parents[4]
LARGE = 3 * SMALL_BYTES
WORKERS = 4
COUNTING = f"""
import sys
from pathlib import Path
from trials.storage import node_digests
from trials.storage.cache import Cache
real = node_digests.file_sha256
def counted(path):
    with open(sys.argv[1], "a") as log:
        log.write(f"{{Path(path).stat().st_size}}\\n")
    return real(path)
node_digests.file_sha256 = counted
def write(folder):
    (folder / "inputs.npy").write_bytes(bytes({LARGE}))
    (folder / "attention.npy").write_bytes(b"1" * {LARGE})
    (folder / "small.npz").write_bytes(b"small")
"""


@pytest.fixture(autouse=True)
def own_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of its own, as another node has one."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    tempfile.tempdir = None


def workers(code: str, log: Path, *arguments: Path) -> list[int]:
    """Run ``code`` in `WORKERS` processes at once. Returns the sizes of all large files that they read."""
    log.touch()
    command = [sys.executable, "-c", COUNTING + code, str(log), *map(str, arguments)]
    started = [subprocess.Popen(command, cwd=ROOT) for _ in range(WORKERS)]
    assert [one.wait() for one in started] == [0] * WORKERS
    return [size for size in map(int, log.read_text().split()) if size >= SMALL_BYTES]


def test_streams_are_read_once_by_all_workers_of_a_node(tmp_path: Path, own_node: Path) -> None:
    code = 'Cache(Path(sys.argv[2])).build("streams", "key", write)'
    assert workers(code, tmp_path / "first", tmp_path / "cache") == [LARGE] * 2  # by the one that writes them
    assert workers(code, tmp_path / "again", tmp_path / "cache") == []
    for one in own_node.rglob("*"):
        if one.is_file():
            one.unlink()  # as on another node
    assert workers(code, tmp_path / "other", tmp_path / "cache") == [LARGE] * 2


def test_the_teachers_weights_are_read_once_by_all_workers_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(os.urandom(LARGE))
    (tmp_path / "config.json").write_text("{}")
    code = "from trials.teacher.source import fingerprint; print(fingerprint(Path(sys.argv[2])))"
    assert workers(code, tmp_path / "log", tmp_path) == [LARGE]


def test_it_is_the_digest_of_the_content(tmp_path: Path) -> None:
    for size in (0, SMALL_BYTES - 1, SMALL_BYTES, LARGE):
        content = os.urandom(size)
        (tmp_path / "file").write_bytes(content)
        for _ in range(2):
            assert sha256_on_node(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("harm", ["flip", "truncate", "replace", "other times"])
def test_damage_of_a_large_file_is_seen_in_spite_of_its_note(harm: str, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        written.append(folder)
        (folder / "data.bin").write_bytes(bytes(LARGE))

    written: list[Path] = []
    folder = Cache(tmp_path / "cache").build("streams", "key", write)
    file = folder / "data.bin"
    before = file.stat()
    if harm == "truncate":
        os.truncate(file, LARGE - 1)
    elif harm == "replace":
        (tmp_path / "new").write_bytes(b"1" * LARGE)
        os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(tmp_path / "new", file)
    else:
        with file.open("r+b") as opened:
            opened.seek(LARGE // 2)
            opened.write(b"1")
        if harm == "other times":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not Cache(tmp_path / "cache").has("streams", "key")
    assert Cache(tmp_path / "cache").build("streams", "key", write) == folder
    assert len(written) == 2
    assert file.read_bytes() == bytes(LARGE)


def test_a_note_counts_for_a_day(tmp_path: Path, own_node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(LARGE))
    first = sha256_on_node(tmp_path / "file")
    (note,) = (one for one in own_node.rglob("*") if one.is_file() and one.suffix != ".lock")
    monkeypatch.setattr(node_digests, "file_sha256", lambda _: "read again")
    assert sha256_on_node(tmp_path / "file") == first
    old = time.time() - COUNTS_SECONDS - 60
    os.utime(note, (old, old))
    assert sha256_on_node(tmp_path / "file") == "read again"


def test_notes_that_count_no_longer_are_removed(tmp_path: Path, own_node: Path) -> None:
    old = time.time() - COUNTS_SECONDS - 60
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(bytes(LARGE))
        sha256_on_node(tmp_path / name)
        (folder,) = own_node.iterdir()
        kept = list(folder.iterdir())
        for one in kept:
            os.utime(one, (old, old))
    assert len(kept) == 2  # the note of the second file, and its lock


def test_notes_that_others_can_write_are_not_believed(tmp_path: Path, own_node: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(LARGE))
    first = sha256_on_node(tmp_path / "file")
    (folder,) = own_node.iterdir()
    for note in folder.iterdir():
        note.write_text("0" * 64)
    assert sha256_on_node(tmp_path / "file") == "0" * 64  # it is the note that is read
    folder.chmod(0o777)
    assert sha256_on_node(tmp_path / "file") == first
