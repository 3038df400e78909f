"""One JSON request to one host, again where that may help: a lost connection, a busy or failing server.

The standard library's client, because it follows no redirect: a key goes to the host it is meant for and no
further. A call has one deadline for all of it, and ends at once when it's called off.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from tunesmith.redact import HIDDEN, without_secrets

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # 529: overloaded, at some providers
NOT_ABOUT_THE_ROW = {401, 402, 403, 404, 405, 407}
CONNECT = 30.0  # seconds until somebody takes the call
LARGEST = 32 * 2**20  # bytes of a reply
SHOWN = 300  # characters of a server's own words in a message


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take, how often it's made, and what is waited in between (seconds).

    The n-th wait is `first_wait` * 2^n with a random part, at most `longest_wait`; a server's Retry-After
    counts where it is longer, and is an end where it's beyond `longest_asked`.
    """

    timeout: float = 600.0
    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 30.0
    longest_asked: float = 600.0


class CallError(Exception):
    """A call that failed finally. `everywhere`: every other one would too, as with a wrong key."""

    def __init__(self, why: str, *, everywhere: bool = False) -> None:
        super().__init__(why)
        self.everywhere = everywhere


class CalledOff(Exception):
    """Nobody waits for the reply any more."""


class _Again(Exception):
    def __init__(self, why: str, *, after: float = 0.0, everywhere: bool = False) -> None:
        super().__init__(why)
        self.after, self.everywhere = after, everywhere


@dataclass
class Client:
    """Posts JSON to one URL, from several threads at once. `proxies`: by scheme; none: straight there."""

    url: str
    key: str = ""
    patience: Patience = field(default_factory=Patience)
    proxies: Mapping[str, str] = field(default_factory=dict)
    _off: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: set[socket.socket] = field(default_factory=set)
    _not_before: float = 0.0  # a busy server's Retry-After holds for all threads

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply's JSON object. Raises CallError where it failed finally, CalledOff after `call_off`."""
        for attempt in range(self.patience.tries):
            self._sleep(self._not_before - time.monotonic())
            try:
                return self._once(body)
            except _Again as failed:
                if self._off.is_set():
                    raise CalledOff from None
                if failed.after > self.patience.longest_asked:
                    asked = f"{failed}; it asks to wait {failed.after:,.0f} s"
                    raise CallError(asked, everywhere=True) from None
                if attempt + 1 == self.patience.tries:
                    often = f" ({self.patience.tries} times)" if attempt else ""
                    raise CallError(f"{failed}{often}", everywhere=failed.everywhere) from None
                wait = min(self.patience.first_wait * 2**attempt, self.patience.longest_wait)
                if failed.after:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + failed.after)
                self._sleep(wait * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")

    def call_off(self) -> None:
        """End all calls now, waiting ones and those under way."""
        self._off.set()
        with self._lock:
            for sock in self._open:
                _shut(sock)

    def _sleep(self, seconds: float) -> None:
        if (seconds > 0 and self._off.wait(seconds)) or self._off.is_set():
            raise CalledOff

    def _once(self, body: Mapping[str, Any]) -> dict[str, Any]:
        late = threading.Event()
        try:
            with self._connected(late) as (connection, path, headers):
                connection.request("POST", path, json.dumps(body).encode(), headers)
                response = connection.getresponse()
                content = response.read(LARGEST + 1)
                if late.is_set():  # what was cut reads like an end
                    raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, ssl.SSLCertVerificationError):
                raise CallError(
                    f"its certificate isn't valid: {error.verify_message}", everywhere=True
                ) from None
            if late.is_set() or isinstance(error, TimeoutError):
                raise _Again(f"no reply within {self.patience.timeout:g} s") from None
            nobody = isinstance(error, ConnectionRefusedError | socket.gaierror)
            raise _Again(f"the connection failed: {_words(error)}", everywhere=nobody) from None
        if len(content) > LARGEST:
            raise CallError(f"the reply is larger than {LARGEST // 2**20} MiB")
        return self._read(response, content)

    def _read(self, response: http.client.HTTPResponse, content: bytes) -> dict[str, Any]:
        status = response.status
        if status == 200:
            try:
                reply = json.loads(content)
            except ValueError:
                reply = None
            if not isinstance(reply, dict):
                raise _Again(f"the reply isn't a JSON object: {self._shown(content)}")
            if "error" in reply:  # some servers say so with a 200
                reply["error"] = self._shown(content)
            return reply
        said = f"HTTP {status}: {self._shown(content) or response.reason}"
        if 300 <= status < 400:
            to = self._clean(response.headers.get("Location", "?"))
            raise CallError(f"HTTP {status}: it has moved to {to}, which isn't followed", everywhere=True)
        if status in AGAIN:
            raise _Again(said, after=_retry_after(response.headers.get("Retry-After", "")))
        raise CallError(said, everywhere=status in NOT_ABOUT_THE_ROW)

    @contextmanager
    def _connected(
        self, late: threading.Event
    ) -> Iterator[tuple[http.client.HTTPConnection, str, dict[str, str]]]:
        """A connection that ends at the deadline, with the path to ask for and the headers."""
        connection, path, headers = self._new()
        connection.connect()
        sock = connection.sock  # http.client lets go of it while the reply is read

        def end() -> None:
            late.set()
            _shut(sock)

        timer = threading.Timer(self.patience.timeout, end)
        timer.daemon = True
        try:
            with self._lock:
                self._open.add(sock)
            timer.start()
            if self._off.is_set():
                raise CalledOff
            sock.settimeout(self.patience.timeout)
            yield connection, path, headers
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(sock)
            connection.close()

    def _new(self) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        to, timeout = urlsplit(self.url), min(CONNECT, self.patience.timeout)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        proxy = urlsplit(self.proxies.get(to.scheme, ""))
        host, port = (proxy.hostname or "", proxy.port) if proxy.hostname else (to.hostname or "", to.port)
        if to.scheme == "http":
            if proxy.hostname:
                return (
                    http.client.HTTPConnection(host, port, timeout=timeout),
                    self.url,
                    headers | _who(proxy),
                )
            return http.client.HTTPConnection(host, port, timeout=timeout), to.path, headers
        connection = http.client.HTTPSConnection(
            host, port, timeout=timeout, context=ssl.create_default_context()
        )
        if proxy.hostname:
            connection.set_tunnel(to.hostname or "", to.port or 443, _who(proxy))
        return connection, to.path, headers

    def _shown(self, content: bytes) -> str:
        """A server's own words, short, on one line and without the key, which some repeat."""
        try:
            reply = json.loads(content)
            error = reply.get("error", reply) if isinstance(reply, dict) else reply
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except ValueError:
            text = content.decode("utf-8", "replace")
        words = " ".join(self._clean(text).split())
        return words if len(words) <= SHOWN else words[:SHOWN] + " …"

    def _clean(self, text: str) -> str:
        return str(without_secrets(text.replace(self.key, HIDDEN) if self.key else text))


def proxies_for(host: str, *, here: bool) -> dict[str, str]:
    """The proxies that the environment names for a host; none for this machine, whatever it says."""
    return {} if here or proxy_bypass(host) else dict(getproxies())


def _who(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(user).decode()}"}


def _retry_after(text: str) -> float:
    """Seconds that a server asks for, which it writes as a number or as a date; 0 for anything else."""
    with suppress(ValueError):
        return max(0.0, float(text))
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _shut(sock: socket.socket) -> None:
    """Wake who reads from it or writes to it; closing alone would let a read wait on."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _words(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
