"""How requests arrive: slowly, half, too large, with what isn't theirs; and what the log has of them."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from tests.serve.opened import CHAT, Api, serving, until
from tunesmith.serve import loopback
from tunesmith.serve.openai import LONGEST_BODY


def sent(api: Api, data: bytes) -> bytes:
    """All that comes back until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def head(api: Api, line: str, *more: str) -> bytes:
    lines = [line, "Host: localhost", f"Authorization: {api.bearer}", *more]
    return "".join(f"{one}\r\n" for one in lines).encode() + b"\r\n"


@pytest.mark.parametrize("half", ["head", "body"])
def test_half_a_request_holds_its_place_for_a_while_only(
    runs: Path, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    monkeypatch.setattr(loopback, half.upper(), 0.2)
    with serving(runs / "base") as api:
        request = head(api, f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", "Content-Length: 9")
        ended = threading.Event()
        with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
            connection.sendall(b"GET /hea" if half == "head" else request + b"{")

            def trickle() -> None:
                while not ended.wait(0.02):
                    connection.send(b"x" if half == "head" else b"")

            slow = threading.Thread(target=trickle)
            slow.start()
            try:
                assert connection.recv(1) == b"", "the connection is ended though bytes still come"
            except ConnectionError:
                pass
            finally:
                ended.set()
                slow.join()
        until(lambda: api.server._free._value == 128, "its place is free")
        assert api.ask("GET", "/health")[0] == 200


def test_a_thread_that_cannot_be_started_keeps_no_place(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(runs / "base") as api:
        with monkeypatch.context() as patched:

            def none(*_: object) -> None:
                raise RuntimeError("can't start new thread")

            patched.setattr(threading.Thread, "start", none)
            with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
                assert connection.recv(1) == b""
        assert api.server._free._value == 128


@pytest.mark.parametrize(("size", "key", "status"), [(LONGEST_BODY + 2**20, "", 413), (3 * 2**20, "x", 401)])
def test_a_client_that_is_still_sending_reads_why_it_is_refused(
    api: Api, size: int, key: str, status: int
) -> None:
    for _ in range(5):
        answer, content, _ = api.ask("POST", CHAT, b" " * size, Authorization=api.bearer + key)
        assert answer == status
        assert json.loads(content)["error"]["type"] == "invalid_request_error"


def test_the_body_of_a_get_is_no_second_request(api: Api) -> None:
    inner = head(api, "GET /v1/models HTTP/1.1")
    found = sent(api, head(api, "GET /health HTTP/1.1", f"Content-Length: {len(inner)}") + inner)
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in found


def test_an_address_that_cannot_be_read_is_told_and_logged(api: Api) -> None:
    before = len(api.seen)
    found = sent(api, head(api, "GET http://[x HTTP/1.1"))
    assert found.startswith(b"HTTP/1.1 400 ")
    until(lambda: len(api.seen) > before, "it is logged")
    assert api.seen[-1].status == 400


def test_a_request_writes_one_line_of_the_log(api: Api) -> None:
    fields = {"model": "a", "messages": [{"role": "user", "content": "Hi"}], "x\n12:00 GET /\x1b[31m": 1}
    before = len(api.seen)
    assert api.post(CHAT, **fields)[0] == 400
    until(lambda: len(api.seen) > before, "it is logged")
    assert api.seen[-1].why.isprintable()
    assert "12:00 GET" in api.seen[-1].why
    sent(api, head(api, "GET /\x1b]0;x\x07 HTTP/1.1", "Connection: close"))
    until(lambda: len(api.seen) > before + 1, "it is logged")
    assert api.seen[-1].path.isprintable()
