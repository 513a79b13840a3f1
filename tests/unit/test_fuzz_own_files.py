"""Generated content of our own files: whatever a disk or a mirror gives back, it is used, made again or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import assert_answer, few, junk, texts, written
from hypothesis import example, given
from hypothesis import strategies as st

from nas.driver.in_folder import DRIVER, _who
from nas.mirror.manifest import FORMAT, MANIFEST, Manifest, Standing, read_manifest
from nas.tracking.messages import Event
from nas.tracking.outbox import Outbox, RejectedError
from trials.distill.results import RESULT, read_result
from trials.final import FinalResult, read_windows
from trials.text.hub_text import HubDataset, _pinned
from trials.trial import TrialResult

anything = st.binary(max_size=60) | junk.map(lambda one: written(one).encode("utf-8", "surrogatepass"))


class Stored:
    """A store that gives back the same content for every name."""

    url = "s3://bucket/study"

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, name: str) -> bytes:
        return self.content if name == MANIFEST else b""


names = texts | st.sampled_from(
    [
        "study/a",
        "study/../b",
        "/etc/passwd",
        "study",
        "cache/importance/a/b",
        "cache/../a",
        "study/./a",
        "other/a",
        "~/a",
    ]
)
entries = st.tuples(st.integers(), st.text("0123456789abcdef", min_size=64, max_size=64)) | junk
manifests = st.fixed_dictionaries(
    {
        "format": st.just(FORMAT) | junk,
        "study": st.just("study") | junk,
        "study_id": junk,
        "owner": junk,
        "standing": st.just({"trials": 1, "finals": 0}) | junk,
        "files": st.dictionaries(names, entries, max_size=3) | junk,
        "database": st.none() | entries,
    },
    optional={"more": junk},
)


@few
@given(anything | manifests.map(lambda one: written(one).encode("utf-8", "surrogatepass")))
@example(b"[" * 5000)
def test_manifest_of_a_mirror(tmp_path: Path, content: bytes) -> None:
    store: Any = Stored(content)
    found: list[Manifest | None] = []
    assert_answer(lambda: found.append(read_manifest(store, "study")))
    for name in found[0].files if found and found[0] else ():
        path = (tmp_path / name).resolve()
        assert path.is_relative_to(tmp_path / "study") or path.is_relative_to(tmp_path / "cache" / "importance")


def test_a_manifest_that_was_written_can_be_read() -> None:
    store: Any = Stored(Manifest("study", "id", "me", Standing(1, 2), {"study/a": (1, "0" * 64)}, None).to_bytes())
    found = read_manifest(store, "study")
    assert found is not None
    assert list(found.files) == ["study/a"]


@few
@given(
    anything
    | st.fixed_dictionaries(
        {"identity": st.just("same"), "rungs": st.lists(junk, max_size=2) | junk, "result": junk}
    ).map(lambda one: written(one).encode("utf-8", "surrogatepass"))
)
@example(b"[" * 5000)
@example(b'{"identity": "same", "rungs": [], "result": {"windows": []}}')
def test_result_of_a_training(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESULT).write_bytes(content)
    for kind in (TrialResult, FinalResult):
        assert read_result(tmp_path, "same", kind.from_dict, lambda *_: None) is None  # there is no student
    assert read_windows(tmp_path, "digest") is None


@few
@given(anything)
@example(b"[" * 5000)
@example(b'{"event": "TrialChanged", "value": {"study": "a", "record": []}}')
def test_message_in_the_outbox(tmp_path: Path, content: bytes) -> None:
    outbox = Outbox(tmp_path / "outbox")
    (outbox.root / "1.json").write_bytes(content)
    try:
        found = outbox.read("1")
    except RejectedError:  # the file is moved to those that MLflow refused
        return
    assert isinstance(found, Event)


@few
@given(anything)
@example(b"[" * 5000)
def test_who_drives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DRIVER).write_bytes(content)
    assert len(_who(tmp_path).splitlines()) == 1


@few
@given(anything)
@example(b"[" * 5000)
def test_revision_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    from trials.text import hub_text

    fresh = hub_text._Found("identity", "config", None, True)
    monkeypatch.setattr(hub_text, "_found", lambda _: fresh)
    (tmp_path / "pin.json").write_bytes(content)
    assert _pinned(HubDataset("a", "b", "org/name", None), tmp_path / "pin.json") == fresh
    assert json.loads((tmp_path / "pin.json").read_text())["identity"] == "identity"
