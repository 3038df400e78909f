"""The local page over real HTTP: its guard on every route, raters at once, and a server that is killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.blind.made_test import A_NAME, B_NAME, likes_b, made_test, rate
from tunesmith.errors import RunError, UsageError
from tunesmith.evaluate.blind.folder import BlindTest
from tunesmith.evaluate.blind.ratings import read_raters
from tunesmith.evaluate.blind.report import blind_report
from tunesmith.rundir import read_jsonl
from tunesmith.serve.blind import BlindServer, blind_serve

ROUTES = [("GET", "/"), ("POST", "/ratings"), ("POST", "/rate"), ("GET", "/none"), ("PUT", "/rate")]


class Client:
    """One rater's connection, with the headers that a browser sends."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, bytes, Any]:
        host = f"127.0.0.1:{self.port}"
        sent = {"Host": host, "Cookie": f"tunesmith_{self.port}={self.token}"}
        if method != "GET":
            sent |= {"Content-Type": "application/json", "Origin": f"http://{host}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            connection.putrequest(method, path, skip_host=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if method != "GET":
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content if method != "GET" else None)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def rate(self, rater: str, item: str, choice: str | None) -> int:
        return self.ask("POST", "/rate", {"rater": rater, "item": item, "choice": choice})[0]


@contextmanager
def serving(test: BlindTest) -> Iterator[Client]:
    with BlindServer(test) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield Client(server.server_port, server.token)
        server.shutdown()
        thread.join()


@pytest.fixture
def test(tmp_path: Path) -> BlindTest:
    return made_test(tmp_path)


@pytest.fixture
def client(test: BlindTest) -> Iterator[Client]:
    with serving(test) as client:
        yield client


def test_a_rater_rates_takes_back_and_goes_on(test: BlindTest, client: Client) -> None:
    items = [item["id"] for item in test.public()["items"]]
    assert client.rate("李雷", items[0], "left") == 204
    assert client.rate("李雷", items[1], "tie") == 204
    assert client.rate("李雷", items[1], None) == 204
    assert client.rate(" 李雷 ", items[2], "right") == 204
    status, body, _ = client.ask("POST", "/ratings", {"rater": "李雷"})
    assert status == 200
    assert json.loads(body) == {
        "ratings": [{"item": items[0], "choice": "left"}, {"item": items[2], "choice": "right"}]
    }
    assert json.loads(client.ask("POST", "/ratings", {"rater": "韓梅梅"})[1]) == {"ratings": []}
    assert len(read_jsonl(test.ratings_file)) == 4


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Cookie": None}, 401),
        ({"Cookie": "tunesmith_1=x"}, 401),
        ({"Cookie": None, "Authorization": "Bearer wrong"}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": None}, 421),
        ({"Host": ""}, 421),
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_the_guard_stands_before_every_route(
    client: Client, method: str, path: str, headers: dict[str, Any], status: int
) -> None:
    answer, body, _ = client.ask(method, path, **headers)
    assert answer == status
    assert b"items" not in body


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": None},
        {"Origin": None, "Sec_Fetch_Site": "none"},
        {"Origin": None, "Authorization": "Bearer wrong"},
    ],
)
@pytest.mark.parametrize("path", ["/rate", "/ratings", "/none"])
def test_another_site_changes_nothing(
    test: BlindTest, client: Client, path: str, headers: dict[str, str]
) -> None:
    item = test.public()["items"][0]["id"]
    body = {"rater": "x", "item": item, "choice": "left"}
    assert client.ask("POST", path, body, **headers)[0] == 403
    assert not test.ratings_file.exists()


@pytest.mark.parametrize(
    "headers", [{"Sec_Fetch_Site": "same-origin"}, {"Cookie": None, "Authorization": "Bearer {}"}]
)
def test_who_sends_no_origin_is_known_otherwise(
    test: BlindTest, client: Client, headers: dict[str, str | None]
) -> None:
    sent = {name: value and value.format(client.token) for name, value in headers.items()}
    body = {"rater": "x", "item": test.public()["items"][0]["id"], "choice": "left"}
    assert client.ask("POST", "/rate", body, Origin=None, **sent)[0] == 204


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[" * 30_000, {}, 400),
        ([1], {}, 400),
        ({"rater": ""}, {}, 400),
        ({"rater": "x" * 100}, {}, 400),
        ({"rater": "x", "item": "nothing", "choice": "left"}, {}, 400),
        ({"rater": "x", "item": ["a"], "choice": "left"}, {}, 400),
        ({"rater": "x"}, {"Content_Type": "text/plain"}, 415),
        (b" " * 70_000, {}, 413),
    ],
)
def test_wrong_bodies(test: BlindTest, client: Client, body: Any, headers: dict, status: int) -> None:
    assert client.ask("POST", "/rate", body, **headers)[0] == status
    assert not test.ratings_file.exists()


def test_an_unknown_choice(test: BlindTest, client: Client) -> None:
    item = test.public()["items"][0]["id"]
    assert [client.rate("x", item, choice) for choice in ("both", "a")] == [400, 400]


def test_the_link_opens_the_page_and_sets_a_cookie_that_scripts_cant_read(client: Client) -> None:
    status, body, headers = client.ask("GET", f"/?key={client.token}", Cookie=None)
    assert status == 200
    assert b'<script type="application/json" id="test">' in body
    cookie = headers["Set-Cookie"]
    assert cookie == f"tunesmith_{client.port}={client.token}; HttpOnly; SameSite=Strict; Path=/"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert headers["Cache-Control"] == "no-store"
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "Python" not in headers["Server"]
    assert client.ask("GET", "/?key=wrong", Cookie=None)[0] == 401
    assert client.ask("GET", "/", Cookie=None, Authorization=f"Bearer {client.token}")[0] == 200
    assert client.ask("GET", "/", Host="localhost:9999")[0] == 200  # a tunnel's other end


def test_no_answer_tells_whose_is_whose(test: BlindTest, client: Client) -> None:
    key = test.key()
    items = test.public()["items"]
    paths = ("/", "/sealed/key.json", "/test.json", "/../test/sealed/key.json", "/%2e%2e/sealed/key.json")
    answers = [client.ask("GET", path) for path in paths]
    assert [status for status, _, _ in answers] == [200, 404, 404, 404, 404]
    saved = [
        client.ask("POST", "/rate", {"rater": "x", "item": item["id"], "choice": "left"}) for item in items
    ]
    # Every saved choice gets the very same answer, but for the clock.
    assert len({(status, body, tuple(h for h in headers.items() if h[0] != "Date"))
                for status, body, headers in saved}) == 1  # fmt: skip
    answers += [*saved, client.ask("POST", "/ratings", {"rater": "x"})]
    for _, body, headers in answers:
        text = body.decode() + str(headers)
        for secret in (A_NAME, B_NAME, key["seed"], "row-3", "repeat_of", key["at"]):
            assert secret not in text


def test_raters_at_once_lose_nothing(test: BlindTest, client: Client) -> None:
    items = test.public()["items"]

    def rater(number: int) -> None:
        for item in items:
            assert client.rate(f"rater {number}", item["id"], likes_b(item, 0)) == 204

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(rater, range(6)))
    assert len(read_jsonl(test.ratings_file)) == 6 * len(items)
    report = blind_report(test.path)
    assert [(r["rated"], r["b"]) for r in report["raters"]] == [(11, 10)] * 6
    assert report["wins"] == 10


def test_once_unsealed_the_page_takes_no_more(test: BlindTest, client: Client) -> None:
    rate(test, "done", likes_b)
    blind_report(test.path)
    before = test.ratings_file.read_bytes()
    assert client.rate("late", test.public()["items"][0]["id"], "left") == 410
    assert test.ratings_file.read_bytes() == before
    with pytest.raises(RunError, match="ratings are closed"):
        blind_serve(test.path)


def test_a_taken_port_is_told(test: BlindTest, client: Client) -> None:
    with pytest.raises(UsageError, match=f"Port {client.port} can't be used"):
        blind_serve(test.path, port=client.port)


def started(test: BlindTest) -> tuple[subprocess.Popen[str], Client]:
    command = [sys.executable, "-m", "tunesmith.cli.main", "blind", "serve", str(test.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    link = process.stdout.readline().strip()
    assert link.startswith("http://127.0.0.1:"), process.communicate()[1]
    return process, Client(int(link.split(":")[2].split("/")[0]), link.partition("key=")[2])


def test_what_was_acknowledged_survives_kill_9(test: BlindTest) -> None:
    items = [item["id"] for item in test.public()["items"]]
    acknowledged: list[str] = []
    process, client = started(test)

    def rater() -> None:
        try:
            for round_ in range(50):
                for item in items:
                    if client.rate("李雷", item, "left" if round_ % 2 else "right") == 204:
                        acknowledged.append(item)
        except (OSError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=rater)
    thread.start()
    while len(acknowledged) < 30:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    thread.join()
    process.communicate()
    lines = read_jsonl(test.ratings_file)
    assert [line["item"] for line in lines][: len(acknowledged)] == acknowledged
    assert len(lines) <= len(acknowledged) + 1
    # The next server goes on where the rater stopped, under a new key.
    process, again = started(test)
    assert again.token != client.token
    with pytest.raises(RunError, match="being served by another process"):
        blind_serve(test.path)
    status, body, _ = again.ask("POST", "/ratings", {"rater": "李雷"})
    assert (status, len(json.loads(body)["ratings"])) == (200, len(items))
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"Stopped. {len(read_raters(test)[0].choices)} choices by 1 rater saved." in told
