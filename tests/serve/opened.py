"""The OpenAI-compatible server in this process, with a raw client, and a gate that holds its steps."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.serve.openai import ApiServer, Seen
from tunesmith.serve.run import Ready, opened

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@dataclass
class Api:
    """A server that runs, and how it's asked."""

    server: ApiServer
    ready: Ready
    seen: list[Seen] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.server_port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Status, content and headers of an answer; a header that is None isn't sent."""
        sent: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}", "Authorization": self.bearer}
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if method == "POST":
            sent |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = self.connect()
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(content or None)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    @property
    def bearer(self) -> str:
        return f"Bearer {self.ready.key}"

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        """Status and object of an answer to these fields."""
        status, content, _ = self.ask("POST", path, fields)
        return status, json.loads(content)

    def chat(self, text: str, model: str = "a", **fields: Any) -> dict[str, Any]:
        """The reply to a message; greedy unless something else is said."""
        body = {"temperature": 0, "max_tokens": 12, **fields}
        messages = [{"role": "user", "content": text}]
        status, reply = self.post(CHAT, model=model, messages=messages, **body)
        assert status == 200, reply
        found: dict[str, Any] = reply
        return found

    def text(self, text: str, model: str = "a", **fields: Any) -> str:
        return str(self.chat(text, model, **fields)["choices"][0]["message"]["content"])

    def stream(self, text: str, model: str = "a", **fields: Any) -> list[Any]:
        """The events of a stream, "[DONE]" included."""
        body = {"temperature": 0, "max_tokens": 12, **fields}
        messages = [{"role": "user", "content": text}]
        status, content, headers = self.ask(
            "POST", CHAT, {"model": model, "messages": messages, "stream": True, **body}
        )
        assert status == 200, content
        assert headers["Content-Type"].startswith("text/event-stream")
        return events(content)

    @contextmanager
    def streaming(self, text: str, model: str = "a", **fields: Any) -> Iterator[http.client.HTTPConnection]:
        """A connection on which a stream was asked for and nothing is read yet."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **fields}
        connection = self.connect()
        headers = {"Authorization": self.bearer, "Content-Type": "application/json"}
        connection.request("POST", CHAT, json.dumps(body), headers)
        try:
            yield connection
        finally:
            connection.close()


def events(content: bytes) -> list[Any]:
    parts = content.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts), parts
    return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


def texts(found: Sequence[Any], index: int = 0) -> str:
    """The text of one answer in a stream's events."""
    choices = [choice for event in found if event != "[DONE]" for choice in event.get("choices", ())]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)


@contextmanager
def serving(*names: Path | str, key_file: Path | None = None, **options: Any) -> Iterator[Api]:
    """A server on a free port until the end of the block, in fp32."""
    seen: list[Seen] = []
    sampling = options.pop("sampling", {})
    given = {"port": 0, "token_file": key_file, "dtype": "fp32", "log": seen.append, **options}
    with opened(list(map(str, names)), sampling, **given) as (server, ready):
        # By its own name an interrupted command would take it for its own, and end this whole process.
        server.engine._thread.name = "a test's"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Api(server, ready, seen)
        finally:
            server.shutdown()
            thread.join()


def until(there: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end, what
        time.sleep(0.002)


class Gate:
    """Holds the engine before each of its steps; `let(n)` lets n of them pass, `open()` all."""

    def __init__(self, api: Api) -> None:
        self._engine: Any = api.server.engine
        self._real = self._engine._step
        self._passes = threading.Semaphore(0)
        self._reached = threading.Semaphore(0)
        self._open = False

    def __enter__(self) -> Gate:
        until(lambda: not self._engine.busy, "what an earlier test asked is over")
        self._engine._step = self._held
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._engine._step = self._real

    def _held(self, lane: Any) -> None:
        self._reached.release()
        if not self._open:
            assert self._passes.acquire(timeout=60)
        self._real(lane)

    def reached(self) -> None:
        """Wait until the engine stands before its next step."""
        assert self._reached.acquire(timeout=60)

    def let(self, count: int = 1) -> None:
        self._passes.release(count)

    def open(self) -> None:
        self._open = True
        self._passes.release(1000)
