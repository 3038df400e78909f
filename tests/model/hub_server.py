"""A small hub on this machine: the routes of huggingface.co that a download uses, with a model of each kind.

org/tiny       a whole model          org/gated      401 with the code of a gated model
org/pickle     pytorch_model.bin only org/private    401 without a code, as for a missing model
org/remote     brings its own code    org/broken     500
org/ggufs      GGUF files only        (others)       404
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The running server: its address, what was asked, and the repositories' files."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        self.url = ""


@contextmanager
def serve(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _answer(self, *, body: bool) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("api/models/").split("/")
        repository = "/".join(parts[:2])
        if repository == "org/broken":
            return self._send(500, b"", body)
        if repository == "org/gated":
            return self._send(401, b"{}", body, {"X-Error-Code": "GatedRepo"})
        if repository == "org/private":
            return self._send(401, b"{}", body)
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("api/"):
            revision = parts[3] if len(parts) > 3 else "main"
            if revision not in ("main", COMMIT):
                return self._send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
            return self._send(200, self._listing(parts, repository, files), body)
        name = "/".join(parts[4:])
        if name not in files:
            return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha1(files[name]).hexdigest()
        return self._send(200, files[name], body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _listing(self, parts: list[str], repository: str, files: dict[str, bytes]) -> bytes:
        if len(parts) > 2 and parts[2] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return json.dumps(entries).encode()
        info = {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "tags": [],
                "downloads": 0, "siblings": [{"rfilename": name} for name in files]}  # fmt: skip
        return json.dumps(info).encode()

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
