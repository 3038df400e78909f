"""The guard of the OpenAI-compatible server: every line of it on every route, and where keys are kept."""

from __future__ import annotations

import http.client
import json
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.serve.opened import CHAT, TEXT, Api, serving
from tunesmith.errors import UsageError
from tunesmith.serve.address import check_address
from tunesmith.serve.key import kept_key, passing_key
from tunesmith.serve.openai import LONGEST_BODY, METHODS

ROUTES = [
    *((method, path) for path, method in METHODS.items()),
    ("GET", "/v1/models/a"), ("GET", "/none"), ("POST", "/none"), ("GET", "/"), ("PUT", CHAT),
    ("DELETE", "/v1/models/a"), ("OPTIONS", CHAT), ("HEAD", "/health"),
    ("GET", "//evil.example/"), ("POST", "/v1/../health"),
]  # fmt: skip
HI = {"model": "a", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic KEY", "KEY", "Bearer KEYx", "Bearer ké"],
)
def test_no_route_forgets_the_key(api: Api, method: str, path: str, authorization: str | None) -> None:
    given = authorization and authorization.replace("KEY", api.ready.key)
    headers: dict[str, Any] = {"Authorization": given}
    status, content, answered = api.ask(method, path, HI if method == "POST" else None, **headers)
    assert status == 401
    assert answered["WWW-Authenticate"] == "Bearer"
    if method != "HEAD":
        assert json.loads(content)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("way", ["?key=KEY", "cookie"])
def test_neither_a_link_nor_a_cookie_lets_anybody_in(api: Api, way: str) -> None:
    """A browser would send a cookie along with what another site asks for."""
    path = "/health" + (way.replace("KEY", api.ready.key) if "KEY" in way else "")
    cookie = f"{api.server.cookie}={api.ready.key}" if way == "cookie" else None
    status, _, headers = api.ask("GET", path, Authorization=None, Cookie=cookie)
    assert status == 401
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.9", "",
     None, "127.0.0.1@evil.example", "2130706433", "127.1"],
)  # fmt: skip
def test_the_host_is_looked_at_before_any_route(api: Api, method: str, path: str, host: str | None) -> None:
    assert api.ask(method, path, HI if method == "POST" else None, Host=host)[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost:9", "[::1]:8000", "127.0.0.1:1"])
def test_this_machine_s_own_names_are_answered(api: Api, host: str) -> None:
    assert api.ask("GET", "/health", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "file://"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, TEXT, "/none"])
def test_another_site_asks_nothing_even_with_the_key(api: Api, path: str, headers: dict[str, str]) -> None:
    assert api.ask("POST", path, HI, **headers)[0] == 403


def test_no_answer_has_cors_headers(api: Api) -> None:
    asked = [
        api.ask("GET", "/v1/models", Origin="http://evil.example"),
        api.ask("OPTIONS", CHAT, Origin="http://evil.example", Access_Control_Request_Method="POST"),
        api.ask("POST", CHAT, HI),
        api.ask("POST", CHAT, {**HI, "stream": True}),
    ]
    for _, _, headers in asked:
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"model=a", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"Content_Type": None}, 415),
        (b"[]", {}, 400), (b"{", {}, 400), (b"\xff", {}, 400), (b"", {}, 400), (b"[" * 100000, {}, 400),
        (b"{}", {"Content_Length": None}, 411), (b"{}", {"Content_Length": "-1"}, 411),
        (b"{}", {"Content_Length": "٣"}, 411), (b"{}", {"Transfer_Encoding": "chunked"}, 411),
        (b"{}", {"Content_Length": str(LONGEST_BODY + 1)}, 413), (b"{}", {"Content_Length": "9" * 5000}, 413),
    ],
)  # fmt: skip
def test_bodies_are_json_of_a_bounded_length(
    api: Api, body: bytes, headers: dict[str, str | None], status: int
) -> None:
    if any("٣" in str(value) for value in headers.values()):
        assert raw(api, "٣".encode()) == 411
        return
    answer, content, _ = api.ask("POST", CHAT, body, **headers)
    assert answer == status
    assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}


def raw(api: Api, length: bytes) -> int:
    """The status of a request with an odd Content-Length."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as sock:
        sock.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {api.bearer}\r\n".encode()
            + b"Content-Type: application/json\r\nContent-Length: " + length + b"\r\n\r\n"
        )  # fmt: skip
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        return answer.status


def test_a_file_is_never_read_for_a_request(api: Api, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"type": "object"}')
    for form in (str(secret), {"type": "json_schema", "json_schema": {"name": "x", "schema": str(secret)}}):
        status, reply = api.post(CHAT, **HI, response_format=form)
        assert (status, reply["error"]["param"]) == (400, "response_format")
    for field in ("json_schema", "chat_template", "template", "model_path"):
        status, reply = api.post(CHAT, **HI, **{field: str(secret)})
        assert (status, reply["error"]["param"]) == (400, field)
    assert api.post(CHAT, **{**HI, "model": str(secret)})[0] == 404
    assert api.ask("GET", f"/v1/models/{secret}")[0] == 404


def test_no_address_in_a_request_is_fetched(api: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        assert api.post(CHAT, **{**HI, "messages": [{"role": "user", "content": parts}]})[0] == 400
        schema = {"$ref": url}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert api.post(CHAT, **HI, response_format=form)[0] == 400
        assert api.post(CHAT, **{**HI, "model": url})[0] == 404
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_the_port_is_the_loopback_s_alone(api: Api) -> None:
    assert api.server.server_address[0] == "127.0.0.1"
    assert api.ready.url == f"http://127.0.0.1:{api.port}/v1"


def test_the_key_is_new_at_each_start_in_a_file_of_its_owner_and_goes_with_the_server(runs: Path) -> None:
    keys = []
    for _ in range(2):
        with serving(runs / "base") as own:
            file = own.ready.key_file
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert file.read_text().strip() == own.ready.key
            assert len(own.ready.key) > 32
            keys.append(own.ready.key)
        assert not file.exists()
    assert keys[0] != keys[1]


def test_a_key_that_is_kept_is_the_same_at_each_start(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "serve.key"
    for _ in range(2):
        with serving(runs / "base", key_file=file) as own:
            assert own.ask("GET", "/health", Authorization=f"Bearer {file.read_text().strip()}")[0] == 200
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "serve.key"
    file.write_text("a-long-enough-key-of-mine\n")
    file.chmod(0o640)
    with pytest.raises(UsageError, match="others on this machine may read it"):
        kept_key(file)
    file.chmod(0o600)
    assert kept_key(file) == "a-long-enough-key-of-mine"


@pytest.mark.parametrize("content", ["", "short", "with a space in it, and long", "schlüssel-mit-umlaut"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "serve.key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(UsageError, match="doesn't hold a key"):
        kept_key(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1"])
def test_another_address_needs_a_key_that_is_kept(host: str) -> None:
    with pytest.raises(UsageError, match="needs a key that you keep"):
        check_address(host, 8000, None)
    assert check_address(host, 8000, "serve.key") == host


@pytest.mark.parametrize("host", ["evil.example", "", "127.0.0.1:8000"])
def test_an_address_is_a_number(host: str) -> None:
    with pytest.raises(UsageError, match="takes an address in numbers"):
        check_address(host, 8000, "serve.key")
    assert check_address("localhost", 8000, None) == "127.0.0.1"


def test_on_all_addresses_numbers_are_answered_and_names_are_not(runs: Path, tmp_path: Path) -> None:
    with serving(runs / "base", host="0.0.0.0", key_file=tmp_path / "serve.key") as own:
        assert own.ask("GET", "/health", Host="192.168.1.5:8000")[0] == 200
        assert own.ask("GET", "/health", Host="evil.example")[0] == 421
        assert own.ask("GET", "/health", Authorization=None)[0] == 401
        assert own.ready.url.startswith("http://127.0.0.1:")


def test_servers_do_not_take_each_other_s_key_files_away() -> None:
    with passing_key("one", "127.0.0.1", 8000) as first, passing_key("two", "::1", 8000) as second:
        assert (first.read_text(), second.read_text()) == ("one\n", "two\n")
    assert not first.exists()
    assert not second.exists()
    with passing_key("old", "127.0.0.1", 8000) as file:
        file.write_text("new\n")
    assert file.read_text() == "new\n", "it's another start's by now"
    file.unlink()
