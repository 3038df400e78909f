"""OpenAI's API over HTTP, before the engine.

    GET  /v1/models            what is served; /v1/models/NAME one of them
    POST /v1/chat/completions  an answer to messages, whole or as a stream
    POST /v1/completions       what follows a text
    GET  /health               that the server is there, and how much it has to do

Each connection has a thread, which reads the request, asks the engine and writes the answer: a client that
reads slowly holds up its own thread alone. The guard (loopback.py) stands before all of it.
"""

from __future__ import annotations

import json
import secrets
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from tunesmith.errors import SettingsError
from tunesmith.serve.asking import Refused, Wanted, read
from tunesmith.serve.engine import Ask, Busy, End, Engine
from tunesmith.serve.fields import Kind
from tunesmith.serve.loopback import LoopbackHandler, LoopbackServer
from tunesmith.serve.models import Models, Served
from tunesmith.serve.replies import Reply, Written, model_object

CONNECTIONS = 128
LONGEST_BODY = 4 * 2**20
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KINDS: Mapping[str, Kind] = {CHAT: "chat", TEXT: "text"}
METHODS = {"/v1/models": "GET", "/health": "GET", CHAT: "POST", TEXT: "POST"}


@dataclass(frozen=True)
class Seen:
    """A request that is over, for the log: no text of it, and no key."""

    method: str
    path: str
    status: int
    seconds: float
    model: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    why: str = ""


class ApiServer(LoopbackServer):
    """Holds the port from the start, and answers once it has `models` and an `engine`."""

    models: Models
    engine: Engine

    def __init__(
        self,
        port: int,
        *,
        address: str,
        token: str,
        defaults: Mapping[str, Any],
        log: Callable[[Seen], None],
    ) -> None:
        """`defaults`: settings where a request gives none. Raises OSError if the port is taken."""
        self.defaults, self.log = defaults, log
        self.created = int(time.time())
        self.under_way: set[Exchange] = set()
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(port, _Handler, address=address, token=token, listening=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or turn it away where there are too many."""
        if not self._free.acquire(blocking=False):
            with suppress(OSError):
                request.settimeout(1)
                request.sendall(
                    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
                )
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Handler(LoopbackHandler):
    server: ApiServer
    longest_body: ClassVar[int] = LONGEST_BODY
    links: ClassVar[bool] = False
    how_to_enter: ClassVar[str] = "the key is missing or wrong: send it as 'Authorization: Bearer KEY'"
    disable_nagle_algorithm = True  # each token goes out at once
    began: float = 0.0
    status: int = 0
    extra: Mapping[str, str] = {}  # headers of the next answer

    def parse_request(self) -> bool:
        self.began, self.status = time.perf_counter(), 0
        return super().parse_request()

    def do_GET(self) -> None:
        self._guarded(super().do_GET)

    def do_POST(self) -> None:
        self._guarded(super().do_POST)

    def _guarded(self, answer: Callable[[], None]) -> None:
        """A mistake of ours is one request's error, and no other's."""
        try:
            answer()
        except OSError:
            raise
        except Exception as error:
            # Where it happened, and not what it says: that may hold somebody's text.
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: "
            what += "this is a mistake in tunesmith, not yours."
            begun, self.close_connection = self.status, True
            if begun:
                self.server.log(Seen(self.command, _line(urlsplit(self.path).path), 500, 0.0, why=what))
            else:
                self._refuse(Refused(500, what, code="internal_error"))

    def answer_get(self, path: str) -> None:
        models = self.server.models.by_name
        if path == "/health":
            engine = self.server.engine
            if not engine.alive:
                return self._refuse(Refused(503, "The server can't compute any more.", code="failed"))
            health = {"status": "ok", "models": list(models), "answers": engine.busy, "room": engine.room}
            return self._send_whole(health)
        if path == "/v1/models":
            return self._send_whole({"object": "list", "data": [self._model(one) for one in models.values()]})
        if path.startswith("/v1/models/"):
            name = unquote(path.removeprefix("/v1/models/"))
            if name in models:
                return self._send_whole(self._model(models[name]))
            return self._refuse(self._no_model(name))
        return self._no_such_path(path, "GET")

    def answer_post(self, path: str, body: Mapping[str, Any]) -> None:
        if path not in KINDS:
            return self._no_such_path(path, "POST")
        try:
            wanted = read(KINDS[path], body, self.server.defaults)
            served = self.server.models.by_name.get(wanted.model)
            if served is None:
                raise self._no_model(wanted.model)
            exchange = Exchange(served, wanted, self._gone)
            self.server.engine.submit(exchange.ask)
        except Refused as error:
            return self._refuse(error)
        why = ""
        self.server.under_way.add(exchange)
        try:
            (self._stream if wanted.stream else self._whole)(exchange)
        except Refused as error:
            self.close_connection = True
            self.status, why = error.status, error.message
            if error.status != 499:
                return self._refuse(error)
        except OSError:
            self.close_connection = True
            self.status, why = 499, "The client has closed the connection, or reads too slowly."
        finally:
            exchange.ask.cancelled = True  # nothing, if it has ended
            self.server.under_way.discard(exchange)
        return self._log(exchange, why)

    def refuse(self, status: int, why: str) -> None:
        """Errors of the guard in OpenAI's shape too."""
        code = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}.get(int(status))
        self.unread = True
        self._refuse(Refused(int(status), f"{why[:1].upper()}{why[1:]}.", code=code), close=True)

    def _whole(self, exchange: Exchange) -> None:
        for _ in exchange.pieces():
            pass
        self._send_whole(exchange.whole(), log=False)

    def _stream(self, exchange: Exchange) -> None:
        """Server-sent events. The status waits for the first token: a failure before it has its own."""
        pieces = exchange.pieces()
        first = next(pieces)
        self.status = 200
        chunked = self.request_version == "HTTP/1.1"
        self.close_connection = self.close_connection or not chunked
        self.send_response(HTTPStatus.OK)
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
        headers |= {"X-Content-Type-Options": "nosniff"}
        headers |= {"Transfer-Encoding": "chunked"} if chunked else {}
        headers |= {"Connection": "close"} if self.close_connection else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

        def write(events: Sequence[str]) -> None:
            data = "".join(f"data: {event}\n\n" for event in events).encode()
            if data:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)

        try:
            write([_json(part) for part in (*exchange.opening(), *first)])
            for parts in pieces:
                write([_json(part) for part in parts])
            write([*map(_json, exchange.closing()), "[DONE]"])
        except Refused as error:
            # The status is out already: the stream says it, and its end is no [DONE].
            write([_json(error.body())])
            exchange.why, self.status, self.close_connection = error.message, error.status, True
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send_whole(self, value: Any, *, log: bool = True) -> None:
        self.status = 200
        self.send(HTTPStatus.OK, _bytes(value))
        if log:
            self._log(None, "")

    def _refuse(self, error: Refused, *, close: bool = False) -> None:
        self.status = error.status
        self.close_connection = self.close_connection or close
        self.extra = {"Retry-After": str(error.after)} if isinstance(error, Busy) else {}
        if error.status == 401:
            self.extra = {"WWW-Authenticate": "Bearer"}
        self.send(error.status, _bytes(error.body()))
        self._log(None, error.message)

    def end_headers(self) -> None:
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.extra = {}
        super().end_headers()

    def _model(self, served: Served) -> dict[str, Any]:
        return model_object(served.name, served.base, self.server.created)

    def _no_model(self, name: str) -> Refused:
        known = ", ".join(self.server.models.by_name)
        return Refused(
            404,
            f"There is no model {name[:100]!r} here. There are: {known}.",
            param="model",
            code="model_not_found",
        )

    def _no_such_path(self, path: str, method: str) -> None:
        if path in METHODS:
            wrong = f"{path} takes {METHODS[path]}, not {method}."
            return self._refuse(Refused(405, wrong, code="method_not_allowed"))
        known = ", ".join(METHODS)
        return self._refuse(
            Refused(404, f"There is nothing at {path[:100]!r}. There are: {known}.", code="not_found")
        )

    def _gone(self) -> bool:
        """Whether the client has closed its end; asked by the engine between steps, and never waits."""
        try:
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def _log(self, exchange: Exchange | None, why: str) -> None:
        parts = urlsplit(getattr(self, "path", ""))
        seen = Seen(
            _line(self.command or ""),
            _line(parts.path),
            self.status,
            time.perf_counter() - self.began,
            why=_line(why, 500),
        )
        if exchange is not None:
            seen = Seen(
                seen.method, seen.path, seen.status, seen.seconds, exchange.served.name,
                exchange.reply.prompt_tokens, exchange.told, seen.why or _line(exchange.why, 500),
            )  # fmt: skip
        self.server.log(seen)


class Exchange:
    """A request from its tokens to its reply. Raises Refused where the model can't be asked so."""

    def __init__(self, served: Served, wanted: Wanted, gone: Callable[[], bool]) -> None:
        self.served, self.wanted, self.why = served, wanted, ""
        sampling = wanted.sampling
        param = "messages" if wanted.kind == "chat" else "prompt"
        prompts = [served.ids(prompt, param) for prompt in wanted.prompts]
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        try:
            rows = [served.rows(ids, sampling, wanted.n, at, seed) for at, ids in enumerate(prompts)]
        except SettingsError as error:
            text = " ".join([error.what, *error.details])
            raise Refused(400, text, param="response_format") from None
        self.ask = Ask(served.lane, rows, gone)
        self.written = [
            Written(
                row.tokenizer, end_ids=row.end_ids, stop=sampling.stop or (), limit=row.limit,
                scored=sampling.logprobs is not None,
            )
            for row in self.ask.rows
        ]  # fmt: skip
        self.texts = ["" for _ in self.written]
        self.scores: list[list[dict[str, Any]]] = [[] for _ in self.written]
        self.reply = Reply(wanted.kind, served.name, served.fingerprint, sum(map(len, prompts)))

    @property
    def told(self) -> int:
        """Tokens written so far."""
        return sum(len(one.growing.ids) for one in self.written)

    def pieces(self) -> Any:
        """The parts that can be shown, as many at a time as there are; raises Refused where it fails."""
        left = len(self.written)
        while left:
            events = [self.ask.events.get()]
            while not self.ask.events.empty():
                events.append(self.ask.events.get())
            parts: list[dict[str, Any]] = []
            for event in events:
                if isinstance(event, Refused):
                    if parts:
                        yield parts
                    raise event
                own = self.written[event.row]
                if isinstance(event, End):
                    left -= 1
                    parts += self._part(event.row, own.finish())
                    assert own.end is not None
                    if self.wanted.stream:
                        parts.append(self._stream_part(event.row, "", finish=own.end.finish))
                else:
                    parts += self._part(event.row, own.add(event.id, event.score))
            yield parts

    def opening(self) -> list[dict[str, Any]]:
        """What a stream of a chat begins with: the role of each answer."""
        if self.wanted.kind == "text":
            return []
        return [self._stream_part(row, "", first=True) for row in range(len(self.written))]

    def closing(self) -> list[dict[str, Any]]:
        """What a stream ends with, where the counts are wanted."""
        return [self.reply.last(self._ends())] if self.wanted.include_usage else []

    def whole(self) -> dict[str, Any]:
        """The reply, after all pieces."""
        scored = self.wanted.sampling.logprobs is not None
        return self.reply.whole(self.texts, self.scores if scored else [None] * len(self.texts), self._ends())

    def _part(self, row: int, text: str) -> list[dict[str, Any]]:
        begin = len(self.texts[row])
        self.texts[row] += text
        scores = self.written[row].new_scores()
        self.scores[row] += scores
        if not self.wanted.stream or not (text or scores):
            return []
        return [self._stream_part(row, text, scores=scores, begin=begin)]

    def _stream_part(self, row: int, text: str, **more: Any) -> dict[str, Any]:
        return self.reply.part(row, text, usage=self.wanted.include_usage, **more)

    def _ends(self) -> list[Any]:
        return [one.end for one in self.written]


def _line(text: str, longest: int = 100) -> str:
    """What a client wrote, for a line of the log: it can neither end the line nor paint the screen."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text[:longest])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bytes(value: Any) -> bytes:
    """With a question mark for half a character, which a request may have as a name."""
    return _json(value).encode("utf-8", "replace")
