"""A server on a real socket that speaks OpenAI's chat protocol, with the faults that servers have.

    with served(lambda call: "答案") as server:
        server.name, server.calls

A reply is a text, or an Odd one: another status, headers, a reset, silence.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Call:
    """A request: its body, headers, when it came, and its number from 0."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    number: int
    at: float

    @property
    def asked(self) -> str:
        """The user's first words."""
        return next(str(m["content"]) for m in self.body["messages"] if m["role"] == "user")


@dataclass(frozen=True)
class Odd:
    """A reply that isn't a plain answer. `reset` cuts the connection, `raw` is sent as it is."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    raw: bytes | None = None
    reset: bool = False
    seconds: float = 0.0
    drip: float = 0.0  # seconds between bytes
    text: str = ""
    finish: str | None = "stop"
    answers: int | None = None


Reply = Callable[[Call], str | Odd]


@dataclass
class Server:
    """Where it is, and what was asked so far, in order of arrival."""

    url: str
    calls: list[Call] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def name(self) -> str:
        return f"{self.url}#tiny"


@contextmanager
def served(reply: Reply) -> Iterator[Server]:
    """Serve on a free port of the loopback until the end of the block."""
    lock, under_way = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            nonlocal under_way
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                call = Call(body, dict(self.headers), len(server.calls), time.monotonic())
                server.calls.append(call)
                under_way += 1
                server.most_at_once = max(server.most_at_once, under_way)
            try:
                found = reply(call) if self.path == "/v1/chat/completions" else Odd(404, error="no such path")
                odd = Odd(text=found) if isinstance(found, str) else found
                time.sleep(odd.seconds)
            finally:
                with lock:  # before the reply: whoever has it may ask again at once
                    under_way -= 1
            with suppress(OSError):
                self._answer(call, odd)

        def _answer(self, call: Call, odd: Odd) -> None:
            if odd.reset:
                linger = struct.pack("ii", 1, 0)  # the kernel sends RST instead of FIN
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
                return
            content = odd.raw
            if content is None:
                value = {"error": {"message": odd.error}} if odd.error else _completion(call, odd)
                content = json.dumps(value, ensure_ascii=False).encode()
            self.send_response(odd.status)
            for name, text in {"Content-Length": str(len(content)), **odd.headers}.items():
                self.send_header(name, text)
            self.end_headers()
            for at in range(len(content) if odd.drip else 0):
                self.wfile.write(content[at : at + 1])
                time.sleep(odd.drip)
            if not odd.drip:
                self.wfile.write(content)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _completion(call: Call, odd: Odd) -> dict[str, Any]:
    count = odd.answers if odd.answers is not None else int(call.body.get("n", 1))
    message = {"role": "assistant", "content": odd.text}
    return {
        "object": "chat.completion",
        "model": call.body["model"],
        "choices": [{"index": i, "message": message, "finish_reason": odd.finish} for i in range(count)],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3 * count, "total_tokens": 7 + 3 * count},
    }
