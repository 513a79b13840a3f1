"""Datasets from a small local hub: found, available offline afterwards, and clear errors for wrong ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"
MOVING = "org/moving"  # a dataset that gets new text once `moved` is set
moved = threading.Event()
ROWS = {"train": ["one", "", "two"], "validation": ["three"]}
MANY = [f"document {number}" for number in range(1000)]


def row(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


JSONL = {side: "".join(map(row, texts)) for side, texts in ROWS.items()}
NO_TEXT = '{"body": "a"}\n'
WIKITEXT_README = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files: [{split: test, path: test.jsonl}]
---
"""
WIKITEXT_ROWS = "".join(json.dumps({"text": row}) + "\n" for row in ("", " = A = \n", "", " One , two . \n"))
REPOSITORIES = {
    "org/whole": {"README.md": "# Whole\n", "train.jsonl": JSONL["train"], "validation.jsonl": JSONL["validation"]},
    "org/train-only": {"README.md": "# Train\n", "train.jsonl": "".join(map(row, MANY))},
    MOVING: {"README.md": "# Old\n", "train.jsonl": "".join(map(row, MANY)), "validation.jsonl": row("old")},
    f"{MOVING} {LATER}": {"README.md": "# New\n", "train.jsonl": JSONL["train"], "validation.jsonl": row("new")},
    "org/test-only": {"README.md": "# Test\n", "test.jsonl": JSONL["train"]},
    "org/no-text": {"README.md": "# Body\n", "train.jsonl": NO_TEXT, "validation.jsonl": NO_TEXT},
    "Salesforce/wikitext": {"README.md": WIKITEXT_README, "test.jsonl": WIKITEXT_ROWS},
    "EleutherAI/lambada_openai": {"README.md": "# Lambada\n", "test.jsonl": '{"text": "a b"}\n'},
    "ptb-text-only/ptb_text_only": {"README.md": "# PTB\n", "test.jsonl": '{"sentence": "c d"}\n{"sentence": "e"}\n'},
}

PROBE = """
import sys
from search_spaces.errors import InputError
from trials.text.sources import open_source
for name in sys.argv[1:]:
    try:
        source = open_source(name)
        print(source.identity, list(source.train()), list(source.validation()))
    except InputError as error:
        print(error)
"""
PACK = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from search_spaces.errors import InputError
from trials.storage.cache import Cache
from trials.text.corpus import load_corpus
tokenizer = AutoTokenizer.from_pretrained("trials/mini")
for request in sys.argv[1:]:
    name, folder, tokens = request.split()
    try:
        corpus = load_corpus(name, tokenizer, Cache(Path(folder)), int(tokens), 100)
        print(corpus.description, corpus.fingerprint)
    except InputError as error:
        print(error)
"""
CHECK = """
import sys
from trials.text.sources import check_sources
for name in sys.argv[1:]:
    try:
        print(check_sources([name] * 3))
    except ValueError as error:
        print(error)
"""
OPEN_TEXT = """
import sys
from search_spaces.errors import InputError
from trials.text.evaluation_text import open_text, text_task
for name in sys.argv[1:]:
    try:
        print(open_text(text_task(name)))
    except InputError as error:
        print(error)
"""
NOBODY = "http://127.0.0.1:9"  # the discard port: a connection is refused at once


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that `datasets` uses."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        wanted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        _, files = self._repository()
        listed = [entry for entry in self._entries(files or {}) if entry["path"] in wanted]
        self._send(200, json.dumps(listed).encode(), {}, body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        rest, files = self._repository()
        revision = self.path.partition("/revision/")[2].partition("?")[0]
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif revision not in ("", "main", "refs%2Fconvert%2Fparquet", COMMIT, LATER):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        elif "/api/" not in self.path:
            content = files.get(rest.rsplit("/", 1)[-1])
            headers = {"X-Repo-Commit": self._commit(), "ETag": f'"{abs(hash(content)):x}"', "Accept-Ranges": "bytes"}
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self._commit()}
            self._send(404 if content is None else 200, (content or "").encode(), headers if content else missing, body)
        elif "/tree/" in self.path:
            self._send(200, json.dumps(self._entries(files)).encode(), {}, body)
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": "/".join(self.path.split("/")[3:5]), "sha": self._commit(), "siblings": siblings}
            self._send(200, json.dumps(info).encode(), {}, body)

    def _repository(self) -> tuple[str, dict[str, str] | None]:
        path = self.path.split("?")[0].replace("/api/", "/").removeprefix("/datasets/")
        name = "/".join(path.split("/")[:2])
        moved = name == MOVING and self._commit() == LATER
        return path.removeprefix(name), REPOSITORIES.get(f"{name} {LATER}" if moved else name)

    def _commit(self) -> str:
        """The revision that is asked for, or else the newest one."""
        asked = next((one for one in (COMMIT, LATER) if one in self.path), None)
        return asked or (LATER if MOVING in self.path and moved.is_set() else COMMIT)

    @staticmethod
    def _entries(files: dict[str, str]) -> list[dict[str, object]]:
        return [{"type": "file", "path": name, "size": len(text), "oid": "0" * 40} for name, text in files.items()]

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(endpoint: str, home: Path, *sources: str, probe: str = PROBE, **more: str) -> list[str]:
    """A line for each source, from a fresh process, because the client reads the hub's address when it is imported."""
    left_out = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **more}
    command = [sys.executable, "-c", probe, *sources]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(sources), lines
    return lines


def test_a_dataset_is_streamed_and_its_packed_text_is_kept_for_when_the_hub_is_gone(hub: str, tmp_path: Path) -> None:
    (first,) = ask(hub, tmp_path, "org/whole")
    assert first.endswith("['one', 'two'] ['three']")
    assert not list(tmp_path.rglob("*.arrow")), "a stream leaves no copy"
    packed, refused = (f"org/whole {tmp_path / name} 100" for name in ("packed", "refused"))
    (there,) = ask(hub, tmp_path, packed, probe=PACK)
    again, error = ask(NOBODY, tmp_path, packed, refused, probe=PACK)
    assert again == there
    assert "out of reach" in error


def test_all_of_a_cache_is_of_the_revision_of_the_first_use(hub: str, tmp_path: Path) -> None:
    """A worker that starts days later, and a final that reads more text, go on with the same text."""
    kept, other, more = (f"{MOVING} {tmp_path / name}" for name in ("kept 100", "other 100", "kept 1000"))
    (first,) = ask(hub, tmp_path, kept, probe=PACK)
    moved.set()
    new, again, longer = ask(hub, tmp_path, other, kept, more, probe=PACK)
    assert new.split()[-1] != first.split()[-1]
    assert again == first
    assert longer.split()[1:3] == ["1,000", "training"], "only the old revision has that many"
    for pin in (tmp_path / "kept" / "hub").iterdir():
        pin.write_text("")
    assert ask(hub, tmp_path, kept, probe=PACK) == [new], "a damaged pin is made anew"


def test_the_revision_of_a_dataset_may_be_named(hub: str, tmp_path: Path) -> None:
    moved.set()
    names = [f"{MOVING}@{COMMIT}", f"{MOVING}@{LATER}", f"{MOVING}@{COMMIT}:default", f"{MOVING}@v9", f"{MOVING}@../x"]
    old, new, same, missing, wrong = ask(hub, tmp_path, *names)
    assert old.endswith("['old']")
    assert new.endswith("['new']")
    assert same == old
    assert "no revision 'v9' on the hub" in missing
    assert "no such file, folder or dataset" in wrong


def test_the_hub_is_asked_before_anything_starts(hub: str, tmp_path: Path) -> None:
    known, refused = ask(hub, tmp_path, "org/whole", "org/missing", probe=CHECK)
    assert known == "None"
    assert refused.startswith("corpus 'org/missing': no such file here and no such dataset on the hub")
    assert ask(NOBODY, tmp_path, "org/missing", probe=CHECK) == ["None"]


def test_a_dataset_on_this_machine_is_read_without_the_hub(hub: str, tmp_path: Path) -> None:
    (first,) = ask(hub, tmp_path, "org/whole")
    load = "import datasets, sys; print(datasets.load_dataset(sys.argv[1]).num_rows)"
    ask(hub, tmp_path, "org/whole", probe=load)
    assert ask(NOBODY, tmp_path, "org/whole") == [first]


def test_a_hash_holds_documents_out_where_a_dataset_has_no_validation_split(hub: str, tmp_path: Path) -> None:
    (line,) = ask(hub, tmp_path, "org/train-only")
    assert line.startswith("hub org/train-only default")
    train, held_out = (json.loads(one.replace("'", '"')) for one in re.findall(r"\[.*?\]", line))
    assert sorted(train + held_out) == sorted(MANY)
    assert 0.02 < len(held_out) / len(MANY) < 0.08


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "offline"])
def test_without_the_hub_a_one_line_error_names_alternatives(tmp_path: Path, more: dict[str, str]) -> None:
    for line in ask(NOBODY, tmp_path, "wikitext-103", "org/name:config", **more):
        assert "out of reach" in line
        assert "--corpus stdlib" in line
        assert "--corpus FILE.txt" in line


def test_a_dataset_that_cannot_be_used_is_refused_in_one_line(hub: str, tmp_path: Path) -> None:
    expected = {
        "org/test-only": ["no train split", "only test"],
        "org/no-text": ["no column 'text'", "only body"],
        "org/missing": ["no such dataset on the hub", "--corpus stdlib"],
        "org/whole:other": ["cannot be loaded", "--corpus stdlib"],
    }
    for line, (source, messages) in zip(ask(hub, tmp_path, *expected), expected.items(), strict=True):
        assert all(message in line for message in [source, *messages]), line


def test_texts_to_judge_on_are_the_test_splits(hub: str, tmp_path: Path) -> None:
    names = ["wikitext-2", "ptb", "lambada", "wikitext-103"]
    wikitext, ptb, lambada, missing = ask(hub, tmp_path, *names, probe=OPEN_TEXT)
    assert "stream='\\n\\n = A = \\n\\n\\n\\n\\n One , two . \\n'" in wikitext
    assert "stream='c d e'" in ptb
    assert "passages=('a b',)" in lambada
    assert missing.startswith("task wikitext-103: cannot be loaded from the hub")
    assert missing.endswith("give the text as a file: wikitext-103=./wiki.test.raw")
    assert ask(NOBODY, tmp_path, *names[:3], probe=OPEN_TEXT) == [wikitext, ptb, lambada]
