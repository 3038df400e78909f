"""An HTTP server for this machine, and the guard that every request passes before any route.

Host      must name this machine (against DNS rebinding, CVE-2024-28224); any port, for SSH tunnels
Origin    of a request that changes something must be that host, or Sec-Fetch-Site same-origin: browsers send
          one with every POST. A foreign or `null` one is refused (CVE-2024-1727), and none beside a cookie.
          Programs with a Bearer header, which no page of another site can send, need none. No CORS headers.
token     new at each start unless one is given: a link with ?key=…, which sets an HttpOnly SameSite=Strict
          cookie, or a Bearer header (for an interface of programs, that alone); compared in constant time,
          on every route
bodies    JSON alone, of a bounded length
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import math
import secrets
import socket
import socketserver
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

HOSTS = ("127.0.0.1", "localhost", "[::1]")
LONGEST_BODY = 64 * 1024
SECONDS = 30  # for a client to take a part of an answer
HEAD, BODY = 10, 60  # seconds for all of a request's head to arrive, and for its body
DRAIN, DRAINED = 2, 16 * 2**20  # seconds and bytes for which the rest of a refused request is read


class Arriving(io.RawIOBase):
    """What a connection sends, until a moment: bytes that trickle in don't put it off."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.until = connection, math.inf

    def readable(self) -> bool:
        """As a stream to read from says."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises TimeoutError when the time is over."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        before = self.connection.gettimeout()
        self.connection.settimeout(left if before is None else min(left, before))
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(before)


class LoopbackServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1. Raises OSError if the port is taken; port 0 takes a free one.

    `address` is another one of this machine, for those who ask for it. Without `listening` the port is held,
    and nobody is let in before `server_activate`.
    """

    daemon_threads = True

    def __init__(
        self,
        port: int,
        handler: type[LoopbackHandler],
        *,
        address: str = "127.0.0.1",
        token: str = "",
        listening: bool = True,
    ) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._address = ipaddress.ip_address(address)
        super().__init__((address, port), handler, bind_and_activate=False)
        try:
            self.server_bind()
            if listening:
                self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def server_bind(self) -> None:
        """Take the port; the library would ask the network for this machine's name as well."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self._address), int(self.server_address[1])

    def answers_to(self, name: str) -> bool:
        """Whether this server goes by the name that a Host header gives.

        Of names localhost alone: others may lead here because somebody else's name server says so. Numbers
        can't, so that whoever listens on all addresses may be called by each of them.
        """
        if name in HOSTS:
            return True
        try:
            number = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return number == self._address or self._address.is_unspecified

    @property
    def link(self) -> str:
        """What a person opens; it holds the token."""
        return f"http://127.0.0.1:{self.server_port}/?key={self.token}"

    @property
    def cookie(self) -> str:
        # Cookies don't know ports: two servers on one machine mustn't take each other's.
        return f"tunesmith_{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is no news."""


class LoopbackHandler(BaseHTTPRequestHandler):
    """Passes on only what the guard lets through; `answer_get` and `answer_post` make the answers."""

    server: LoopbackServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tunesmith", ""
    timeout = SECONDS
    content_security_policy = "default-src 'none'"
    longest_body: ClassVar[int] = LONGEST_BODY
    links: ClassVar[bool] = True  # whether a key in the link, and the cookie it sets, let a browser in
    how_to_enter: ClassVar[str] = "open the link that the terminal shows"

    def answer_get(self, path: str) -> None:
        """Answer GET."""
        raise NotImplementedError

    def answer_post(self, path: str, body: Mapping[str, Any]) -> None:
        """Answer POST of a JSON object."""
        raise NotImplementedError

    def setup(self) -> None:
        """As the library, but what arrives has a time by which it must be there."""
        super().setup()
        self.rfile.close()
        self.arriving = Arriving(self.connection)
        self.rfile = io.BufferedReader(self.arriving)
        self.unread = False  # whether something of a request is left that nobody will read

    def handle_one_request(self) -> None:
        """A request, whose head must be there in time."""
        self.arriving.until = time.monotonic() + HEAD
        super().handle_one_request()

    def finish(self) -> None:
        """Let a client whose request is refused take the answer: it may still be sending, and an end with
        bytes unread would throw the answer away."""
        with suppress(OSError):
            self.wfile.flush()
            if self.unread:
                self.connection.shutdown(socket.SHUT_WR)
                self.arriving.until = time.monotonic() + DRAIN
                left = DRAINED
                while left > 0 and (part := self.rfile.read1(2**16)):
                    left -= len(part)
        super().finish()

    def parse_request(self) -> bool:
        """Whether the request may go on; where it may not, the answer has been sent."""
        # Here, and not in the methods: an unknown method is stopped by the same guard.
        if not super().parse_request():
            return False
        try:
            urlsplit(self.path)
        except ValueError:
            self.path = "/"
            self.refuse(HTTPStatus.BAD_REQUEST, "the address can't be read")
            return False
        return self._let_through()

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = self.unread = True  # its body would be taken for the next request
        self.answer_get(urlsplit(self.path).path)

    def do_POST(self) -> None:
        if self.headers.get_content_type() != "application/json":
            return self.refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON only")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            return self.refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if len(length) > 12 or int(length) > self.longest_body:
            return self.refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is too long: {self.longest_body // 1024} KiB is the most",
            )
        try:
            self.arriving.until = time.monotonic() + BODY
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return self.refuse(HTTPStatus.BAD_REQUEST, "the body isn't a JSON object")
        return self.answer_post(urlsplit(self.path).path, body)

    def send(self, status: int, content: bytes = b"", kind: str = "application/json") -> None:
        """Send an answer with the headers that all have."""
        self.send_response(status)
        headers = {
            "Content-Security-Policy": f"{self.content_security_policy}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        if content:
            headers["Content-Type"] = f"{kind}; charset=utf-8"
        if self._key_in_link():
            cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            headers["Set-Cookie"] = cookie
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_json(self, value: Any) -> None:
        """Send an object."""
        self.send(HTTPStatus.OK, json.dumps(value, ensure_ascii=False).encode())

    def refuse(self, status: int, why: str) -> None:
        """Send an error, and end the connection: what is left of its request isn't read."""
        self.close_connection = self.unread = True
        self.send(status, f"{why}\n".encode(), "text/plain")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself gets the same headers, and no page that repeats the request."""
        del explain
        self.refuse(code, message if message and message.isascii() else HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the request line holds the token."""

    def _let_through(self) -> bool:
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if not self.server.answers_to(name.lower()) or len(self.headers.get_all("Host", [])) != 1:
            self.refuse(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this server answers to its own address only, such as 127.0.0.1 or localhost",
            )
        elif self.command not in ("GET", "HEAD") and not self._from_here(host):
            self.refuse(HTTPStatus.FORBIDDEN, "the request comes from another site")
        elif not self._knows_token():
            self.refuse(HTTPStatus.UNAUTHORIZED, self.how_to_enter)
        else:
            return True
        return False

    def _from_here(self, host: str) -> bool:
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            return False
        if site is not None:
            return site == "same-origin"
        # Where no cookie counts, whoever sends neither has to know the token, which is asked for next.
        return origin is not None or not self.links or self._has_bearer()

    def _knows_token(self) -> bool:
        if not self.links:
            return self._has_bearer()
        try:
            morsel = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            morsel = None
        return self._has_bearer() or self._is_token(morsel.value if morsel else "") or self._key_in_link()

    def _has_bearer(self) -> bool:
        scheme, _, bearer = self.headers.get("Authorization", "").partition(" ")
        return self._is_token(bearer if scheme.lower() == "bearer" else "")

    def _key_in_link(self) -> bool:
        if not self.links or not hasattr(self, "headers") or self.command != "GET":
            return False
        return self._is_token(parse_qs(urlsplit(self.path).query).get("key", [""])[0])

    def _is_token(self, word: str) -> bool:
        return hmac.compare_digest(word.encode(), self.server.token.encode())
