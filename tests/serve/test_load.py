"""What happens under load and when things go wrong: closed connections, full queues, slow readers, errors."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.serve.opened import CHAT, Api, Gate, events, serving, texts, until
from tunesmith.infer.decoding import Decoder
from tunesmith.serve.lanes import BatchLane

LONG = {"max_tokens": 120, "temperature": 0}


def batch(api: Api, name: str = "a") -> Any:
    lane = api.server.models.by_name[name].lane
    assert isinstance(lane, BatchLane)
    return lane._batch


def free(api: Api) -> bool:
    cache = batch(api).decoder.cache
    return bool(cache._free == [(0, cache.tokens)])


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_frees_its_place_within_a_step(api: Api, stream: bool) -> None:
    before = len(api.seen)
    with Gate(api) as gate:
        with api.streaming("Hi", **LONG, n=3) if stream else raw(api, max_tokens=400, n=3):
            for _ in range(3):
                gate.reached()
                gate.let()
            gate.reached()
            rows = list(batch(api).active)
            assert len(rows) == 3
            assert api.server.engine.busy == 3
            asks = list(api.server.engine._asks)
        # The engine stands before a step, which still computes them; the one after it doesn't.
        until(lambda: all(ask.gone() for ask in asks), "the kernel has told of the end")
        gate.let()
        until(lambda: api.server.engine.busy == 0, "the place isn't free")
        assert all(row.dropped for row in rows)
        written = [len(row.choice.new) for row in rows]
        gate.open()
        assert api.text("Hi") != ""
    assert [len(row.choice.new) for row in rows] == written, "nothing was computed for it since"
    assert free(api)
    until(lambda: not api.server.under_way, "its thread has ended")
    until(lambda: any(seen.status == 499 for seen in api.seen[before:]), "and it is logged")


def raw(api: Api, **fields: Any) -> socket.socket:
    """A connection with a request on it."""
    body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "Hi"}], **fields})
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {api.bearer}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    found = socket.create_connection(("127.0.0.1", api.port), timeout=60)
    found.sendall(head.encode() + body.encode())
    return found


def test_one_that_arrives_later_joins_and_may_end_first(api: Api) -> None:
    alone = api.text("Hi", **LONG)
    with Gate(api) as gate, api.streaming("Hi", **LONG) as first:
        for _ in range(4):
            gate.reached()
            gate.let()
        gate.reached()
        done: list[str] = []
        second = threading.Thread(target=lambda: done.append(api.text("Hi", max_tokens=3)))
        second.start()
        until(lambda: api.server.engine.busy == 2, "the second request arrives")
        gate.let()
        for _ in range(4):
            gate.reached()
            gate.let()
        second.join(60)
        assert len(done) == 1
        assert api.server.engine.busy == 1, "the first one is still being written"
        gate.open()
        whole = events(first.getresponse().read())
    assert whole[-1] == "[DONE]"
    assert done[0] != ""
    assert texts(whole) == alone, "it is what it would have been without the other"
    assert alone.startswith(done[0])


def test_two_runs_take_turns(api: Api) -> None:
    with Gate(api) as gate, api.streaming("Hi", "a", **LONG), api.streaming("Hi", "b", **LONG):
        until(lambda: api.server.engine.busy == 2, "both arrive")
        for _ in range(10):
            gate.reached()
            gate.let()
        gate.reached()
        (first,), (second,) = (batch(api, name).active for name in ("a", "b"))
        before = [len(row.choice.new) for row in (first, second)]
        for _ in range(6):
            gate.let()
            gate.reached()
        after = [len(row.choice.new) for row in (first, second)]
        assert [late - early for early, late in zip(before, after, strict=True)] == [3, 3]


def test_a_full_queue_is_told_with_when_to_come_again(runs: Path) -> None:
    with serving(runs / "a", batch_size=2, queue=1) as api, Gate(api) as gate:
        with api.streaming("Hi", **LONG, n=2), api.streaming("Hi", **LONG):
            until(lambda: api.server.engine.busy == 3, "two are answered and one waits")
            messages = [{"role": "user", "content": "Hi"}]
            status, content, headers = api.ask("POST", CHAT, {"model": "a", "messages": messages})
            error = json.loads(content)["error"]
            assert (status, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
            assert 1 <= int(headers["Retry-After"]) <= 60
            assert len(batch(api).active) <= 2
        gate.open()
        until(lambda: api.server.engine.busy == 0, "they are gone")
        assert api.text("Hi") != "", "and it answers again"


def test_a_reader_that_takes_nothing_holds_up_nobody(runs: Path) -> None:
    with serving(runs / "a") as api:
        api.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # taken over by connections
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect(("127.0.0.1", api.port))
        body = json.dumps(
            {"model": "a", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 4,
             "logprobs": True, "top_logprobs": 20, "max_tokens": 60, "temperature": 1.0, "seed": 1}
        )  # fmt: skip
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {api.bearer}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body.encode())
        until(lambda: api.server.under_way, "it arrives")
        assert all(api.text("Hi") for _ in range(3)), "others are answered"
        until(lambda: api.server.engine.busy == 0, "its own answer is computed to the end")
        assert api.server.under_way, "and its thread still writes"
        content = b""
        while b"data: [DONE]" not in content:
            content += slow.recv(65536)
        slow.close()


def test_a_lack_of_memory_ends_one_request_and_not_the_server(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = api.text("Hi")
    real = Decoder.read

    def short_of_memory(self: Decoder, new: Any) -> Any:
        if any(len(one.ids) > 60 for one in new):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")
        return real(self, new)

    monkeypatch.setattr(Decoder, "read", short_of_memory)
    messages = [{"role": "user", "content": "白日依山盡" * 20}]
    for stream in (False, True):
        status, reply = api.post(CHAT, model="a", messages=messages, stream=stream)
        assert (status, reply["error"]["code"], reply["error"]["type"]) == (
            503,
            "out_of_memory",
            "server_error",
        )
    assert api.text("Hi") == wanted
    monkeypatch.undo()
    assert api.text("白日依山盡" * 20) != ""


def test_a_mistake_in_a_step_ends_its_requests_and_not_the_server(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = api.text("Hi")

    def broken(*_: Any) -> Any:
        raise KeyError("a mistake")

    monkeypatch.setattr(BatchLane, "step", broken)
    status, reply = api.post(CHAT, model="a", messages=[{"role": "user", "content": "Hi"}])
    assert (status, reply["error"]["code"]) == (500, "failed")
    monkeypatch.undo()
    assert api.text("Hi") == wanted
    assert free(api)


def test_a_lane_that_cannot_begin_ends_its_requests_and_not_the_server(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    with serving(runs / "base") as api:
        monkeypatch.setattr("tunesmith.serve.lanes.Decoder", broken)
        status, reply = api.post(CHAT, model="base", messages=[{"role": "user", "content": "Hi"}])
        assert (status, reply["error"]["code"]) == (503, "out_of_memory")
        monkeypatch.undo()
        assert api.server.engine.busy == 0
        assert api.text("Hi", "base") != ""
        assert api.ask("GET", "/health")[0] == 200


def test_an_engine_that_breaks_lets_nobody_wait_and_says_so(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a mistake")

    with serving(runs / "base") as api:
        monkeypatch.setattr(api.server.engine, "_take", broken)
        for _ in range(2):
            status, reply = api.post(CHAT, model="base", messages=[{"role": "user", "content": "Hi"}])
            assert (status, reply["error"]["code"]) == (503, "failed")
        api.server.engine._thread.join(60)
        assert api.ask("GET", "/health")[0] == 503


def test_a_server_that_stops_says_so_in_the_stream(runs: Path) -> None:
    with serving(runs / "a") as api, Gate(api) as gate, api.streaming("Hi", **LONG) as connection:
        for _ in range(3):
            gate.reached()
            gate.let()
        answer = connection.getresponse()
        closing = threading.Thread(target=api.server.engine.close, args=(0.0,))
        closing.start()
        gate.open()
        found = events(answer.read())
        closing.join()
        assert found[-1]["error"]["code"] == "server_stopping"
        assert "[DONE]" not in found
        status, reply = api.post(CHAT, model="a", messages=[{"role": "user", "content": "Hi"}])
        assert (status, reply["error"]["code"]) == (503, "server_stopping")


def test_running_answers_may_end_when_the_server_stops(runs: Path) -> None:
    with serving(runs / "a") as api:
        with api.streaming("Hi", **LONG) as connection:
            answer = connection.getresponse()
            api.server.engine.close(60.0)
            found = events(answer.read())
        assert found[-1] == "[DONE]"
        assert found[-2]["choices"][0]["finish_reason"] in ("length", "stop")


def test_too_many_connections_are_turned_away(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.serve.openai.CONNECTIONS", 2)
    with serving(runs / "a") as api:
        held = [socket.create_connection(("127.0.0.1", api.port), timeout=60) for _ in range(2)]
        until(lambda: api.server._free._value == 0, "both have a thread")
        assert api.ask("GET", "/health")[0] == 503
        for one in held:
            one.close()
        until(lambda: api.server._free._value == 2, "both are gone")
        assert api.ask("GET", "/health")[0] == 200
