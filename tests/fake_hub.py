"""As much of the hub as a download needs, on a port of the loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789" * 4


class FakeHub(ThreadingHTTPServer):
    """Serves ``folders`` by model id. ``gated/...`` asks for a login, ``silent/...`` never answers.

    ``tagged`` has folders by model id and tag; their commit is `tagged_commit`.
    """

    def __init__(self, folders: dict[str, Path], tagged: dict[tuple[str, str], Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = folders
        self.tagged = tagged or {}
        self.requests: list[str] = []
        self.closing = threading.Event()

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        """Answer until the block is left; from then on connections are refused."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.closing.set()
            self.shutdown()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append(path)
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        folder = self.server.folders.get(name)
        commit = COMMIT
        for (model, tag), other in self.server.tagged.items():
            if model == name and revision in (tag, tagged_commit(tag)):
                folder, commit = other, tagged_commit(tag)
        if parts[0] == "silent":
            self.server.closing.wait()
        elif parts[0] == "gated":
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif folder is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif commit == COMMIT and revision not in ("main", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "resolve" in parts:
            content = (folder / parts[-1]).read_bytes()
            self._answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit})
        else:
            self._answer(200, json.dumps(_listing(folder, "tree" in parts, commit)).encode(), {})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def tagged_commit(tag: str) -> str:
    """The commit that ``tag`` is of."""
    return hashlib.sha1(tag.encode()).hexdigest()


def _listing(folder: Path, tree: bool, commit: str) -> object:
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    if tree:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]
    return {"id": "a/model", "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []}
