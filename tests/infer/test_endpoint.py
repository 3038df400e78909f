"""Endpoints against a server on a real socket: what is sent, what is asked again, what counts as failed."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.openai_server import Call, Odd, served
from tunesmith.errors import GenerateError, SettingsError, UsageError
from tunesmith.infer.client import Patience, proxies_for
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import KNOWN, NEUTRAL, check_endpoints, is_endpoint, parse, unknown_settings
from tunesmith.infer.remote import RemoteModel, connect
from tunesmith.records import Completion, Conversation, Message, Origin

QUICK = Patience(timeout=60, tries=4, first_wait=0.01, longest_wait=0.02)
KEY = "not-a-real-key-0123456789"


def asking(*texts: str) -> list[Conversation]:
    return [
        Conversation((Message("system", "短く"), Message("user", text)), Origin("rows", at + 1, at))
        for at, text in enumerate(texts)
    ]


def model(name: str, patience: Patience = QUICK, at_once: int = 4, **sampling: object) -> RemoteModel:
    return RemoteModel(parse(name), Sampling.model_validate(sampling), at_once, patience)


def only(answers: list[list[Completion]]) -> list[Completion]:
    assert all(len(each) == 1 for each in answers)
    return [each[0] for each in answers]


def test_answers_come_in_order_whatever_takes_longest_and_few_calls_are_under_way() -> None:
    prompts = asking(*(f"第{i}问" for i in range(12)))

    def reply(call: Call) -> Odd:
        number = int(call.asked[1:-1])
        return Odd(text=f"答{number}", seconds=0.4 if number % 4 == 0 else 0.0)

    with served(reply) as server:
        answers = only(list(model(server.name, at_once=3).complete(prompts)))
    assert [answer.text for answer in answers] == [f"答{i}" for i in range(12)]
    assert all((a.finish, a.prompt_tokens, a.completion_tokens) == ("stop", 7, 3) for a in answers)
    assert all(answer.seconds > 0 for answer in answers)
    assert 2 <= server.most_at_once <= 3
    assert len(server.calls) == 12


def test_what_is_sent_is_the_conversation_and_every_setting_under_the_api_s_name() -> None:
    told: dict[str, object] = {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "seed": 4,
    }
    with served(lambda _: "好") as server:
        list(model(server.name).complete(asking("你好")))
        list(model(server.name, stop=("。",), num_return_sequences=2, **told).complete(asking("你好")))
    greedy, drawn = (dict(call.body) for call in server.calls)
    messages = [{"role": "system", "content": "短く"}, {"role": "user", "content": "你好"}]
    assert greedy == {"model": "tiny", "messages": messages, "max_tokens": 512, "temperature": 0}
    assert drawn == {
        "model": "tiny", "messages": messages, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "seed": 4, "stop": ["。"], "n": 2,
    }  # fmt: skip


def test_a_schema_is_sent_as_the_form_of_the_reply() -> None:
    pytest.importorskip("llguidance", reason="json_schema needs the extra schema")
    with served(lambda _: "{}") as server:
        list(model(server.name, json_schema={"type": "object"}).complete(asking("你好")))
    (call,) = server.calls
    assert call.body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_each_setting_is_sent_or_refused_and_none_is_dropped() -> None:
    sendable = {*KNOWN, *NEUTRAL, "pad_token_id", "eos_token_id", "max_length", "logprobs"}
    assert set(Sampling.model_fields) - sendable == {"repetition_penalty_range"}
    wrong = Sampling(
        top_k=5, min_p=0.1, repetition_penalty=1.2, repetition_penalty_range=9, max_length=9, logprobs=2,
        no_repeat_ngram_size=3, pad_token_id=0, eos_token_id=(1,), temperature=1.0,
    )  # fmt: skip
    names = {problem.split(":")[0] for problem in unknown_settings(wrong)}
    assert names == set(wrong.given()) - {"temperature"}
    neutral = Sampling(num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, early_stopping=False)
    assert unknown_settings(neutral) == []
    assert unknown_settings(Sampling(stop=tuple("abcde"))) == ["stop: 5 texts, and it takes 4"]
    with pytest.raises(SettingsError, match="top_k") as refused:
        check_endpoints(["smollm2-135m", "http://localhost/v1#m"], wrong)
    assert len(refused.value.details) == len(names)


def test_busy_failing_and_resetting_servers_are_asked_again() -> None:
    odd = [Odd(429, error="slow"), Odd(503), Odd(reset=True), Odd(raw=b"<html>"), Odd(500)]

    def reply(call: Call) -> str | Odd:
        return odd[call.number] if call.number < 3 else "好"

    with served(reply) as server:
        answers = only(list(model(server.name, at_once=1).complete(asking("一", "二"))))
    assert [answer.text for answer in answers] == ["好", "好"]
    assert [call.asked for call in server.calls] == ["一", "一", "一", "一", "二"]


def test_a_row_that_fails_finally_is_an_error_with_its_reason_and_the_others_are_answered() -> None:
    wrong = {
        "满": Odd(400, error="maximum context length is 8"),
        "坏": Odd(500, error="cuda"),
        "断": Odd(reset=True),
        "乱": Odd(raw=b'{"choices": 3}'),
        "滤": Odd(finish="content_filter"),
        "迟": Odd(seconds=3),
        "少": Odd(answers=0),
    }
    patience = Patience(timeout=0.5, tries=2, first_wait=0.01)
    with served(lambda call: wrong.get(call.asked, "好")) as server:
        answers = only(list(model(server.name, patience).complete(asking("一", *wrong, "二"))))
    found = dict(zip(["一", *wrong, "二"], answers, strict=True))
    assert [found[prompt].finish for prompt in ("一", "二")] == ["stop", "stop"]
    assert all(found[prompt].finish == "error" and found[prompt].text == "" for prompt in wrong)
    assert found["满"].error == "HTTP 400: maximum context length is 8"
    assert found["坏"].error == "HTTP 500: cuda (2 times)"
    assert "connection failed" in found["断"].error
    assert "no choices" in found["乱"].error
    assert "filter" in found["滤"].error
    assert "no reply within 0.5 s" in found["迟"].error
    tries = Counter(call.asked for call in server.calls)
    assert tries["满"] == tries["乱"] == 1
    assert tries["坏"] == tries["断"] == tries["迟"] == 2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for_by_all_calls(form: str) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    asked = "0.5" if form == "seconds" else later

    def reply(call: Call) -> str | Odd:
        return Odd(429, {"Retry-After": asked}) if call.number == 0 else "好"

    with served(reply) as server:
        began = time.monotonic()
        answers = only(list(model(server.name, at_once=1).complete(asking("一", "二"))))
    assert [answer.finish for answer in answers] == ["stop", "stop"]
    assert server.calls[1].at - began >= 0.5
    # Asked to wait for an hour, nobody does.
    with (
        served(lambda _: Odd(429, {"Retry-After": "3600"})) as busy,
        pytest.raises(GenerateError, match="3,600 s"),
    ):
        list(model(busy.name).complete(asking("一")))
    assert len(busy.calls) == 1


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (Odd(401, error="Incorrect API key"), "HTTP 401: Incorrect API key"),
        (Odd(404, error="The model `tiny` does not exist"), "does not exist"),
        (Odd(302, {"Location": "http://127.0.0.1:1/v1"}), "isn't followed"),
    ],
)
def test_what_would_fail_for_all_rows_ends_it_at_once(odd: Odd, says: str) -> None:
    with served(lambda _: odd) as server, pytest.raises(GenerateError, match=says):
        list(model(server.name, at_once=1).complete(asking(*"一二三四五六")))
    assert len(server.calls) == 1


def test_nobody_there_and_ten_failures_in_a_row_end_it() -> None:
    with pytest.raises(GenerateError, match="refused"):
        list(model("http://127.0.0.1:9/v1#m", Patience(tries=2, first_wait=0.01)).complete(asking("一")))
    with (
        served(lambda _: Odd(400, error="no")) as server,
        pytest.raises(GenerateError, match="10 rows failed"),
    ):
        list(model(server.name, at_once=1).complete(asking(*"一" * 30)))
    assert len(server.calls) <= 12


def test_the_older_name_of_the_limit_is_tried_first() -> None:
    def reply(call: Call) -> str | Odd:
        if "max_tokens" in call.body:
            return Odd(400, error="Use 'max_completion_tokens' instead.")
        return str(call.body["max_completion_tokens"])

    with served(reply) as server:
        answers = only(list(model(server.name, at_once=1, max_new_tokens=5).complete(asking("一", "二"))))
    assert [answer.text for answer in answers] == ["5", "5"]
    assert len(server.calls) == 3


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with served(lambda call: Odd(400, error=f"bad key {KEY}") if call.number else "好") as server:
        asked = model(f"{server.name}@TEST_KEY", at_once=1)
        good, bad = only(list(asked.complete(asking("一", "二"))))
    assert server.calls[0].headers["Authorization"] == f"Bearer {KEY}"
    assert good.text == "好"
    assert bad.error == "HTTP 400: bad key (hidden)"
    assert KEY not in repr(asked) + str(asked.facts())
    with served(lambda _: "好") as server:
        list(model(server.name).complete(asking("一")))
    assert "Authorization" not in server.calls[0].headers


def test_no_proxy_of_the_environment_catches_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with served(lambda _: "好") as server:
        assert only(list(model(server.name).complete(asking("一"))))[0].text == "好"
    assert proxies_for("api.example.com", here=False)["http"] == "http://127.0.0.1:9"


def test_a_reply_that_never_ends_has_one_deadline_for_all_of_it() -> None:
    slow = Odd(text="好", drip=0.1)  # each byte comes in time, all of them in half a minute
    with served(lambda _: slow) as server:
        began = time.monotonic()
        (answer,) = only(list(model(server.name, Patience(timeout=0.6, tries=1)).complete(asking("一"))))
    assert time.monotonic() - began < 5
    assert answer.error == "no reply within 0.6 s"


def test_an_abandoned_call_ends_at_once() -> None:
    with served(lambda call: Odd(text="好", seconds=0 if call.number == 0 else 5)) as server:
        batches = model(server.name, at_once=2).complete_batches(asking(*"一二三"))
        next(batches)
        began = time.monotonic()
        batches.close()
        while any(thread.name == "tunesmith-endpoint" for thread in threading.enumerate()):
            assert time.monotonic() - began < 2  # no call is left that somebody may have to pay for
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("http://127.0.0.1:8000/v1", "name is missing"),
        ("http://127.0.0.1:8000#m", "path is missing"),
        ("https://me:s3cret@api.example.com/v1#m", "no user, password or key"),
        ("https://api.example.com/v1?key=s3cret#m", "query"),
        ("http:///v1#m", "no host"),
        ("http://[::1/v1#m", "isn't a URL"),
        ("http://localhost/v1#m@NOT_SET_HERE", "isn't set"),
    ],
)
def test_names_that_can_t_be_asked_say_why_and_show_no_secret(name: str, says: str) -> None:
    with pytest.raises(UsageError) as wrong:
        connect(name)
    assert says in str(wrong.value)
    assert "s3cret" not in str(wrong.value)


def test_a_name_is_a_url_a_model_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse("https://api.example.com/v1/#@cf/meta/llama-3@2024@EXAMPLE_API_KEY")
    assert (found.url, found.model, found.key_variable) == (
        "https://api.example.com/v1", "@cf/meta/llama-3@2024", "EXAMPLE_API_KEY",
    )  # fmt: skip
    assert parse("http://h/v1/chat/completions#m").url == "http://h/v1"
    assert is_endpoint("HTTPS://h/v1#m")
    assert not is_endpoint("runs/tang-1")
    monkeypatch.setenv("EXAMPLE_API_KEY", "two words")
    with pytest.raises(UsageError, match="isn't a key"):
        found.key()


def test_leaving_this_machine_is_said_in_one_line() -> None:
    for here in (
        "http://127.0.0.1:1/v1#m",
        "http://localhost/v1#m",
        "http://[::1]:80/v1#m",
        "http://127.9.9.9/v1#m",
    ):
        assert parse(here).leaving() == ""
    told: list[str] = []
    connect("https://api.example.com/v1#m", note=told.append)
    connect("http://192.168.1.5:8000/v1#m", note=told.append)
    assert told == [
        "Rows are sent to api.example.com, which isn't this machine.",
        "Rows are sent to 192.168.1.5, which isn't this machine, unencrypted.",
    ]
    with pytest.raises(UsageError, match="template"):
        connect("https://api.example.com/v1#m", template="chatml")


@pytest.mark.parametrize("key", ["sk-0123456789abcdef0123", "hf_0123456789abcdefABCD"])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(f"https://api.example.org/v1#chat@{key}")
    told = "\n".join((caught.value.what, *caught.value.details, caught.value.fix))
    assert "the name of an environment variable" in told
    assert key not in told
    assert parse("https://api.example.org/v1#library/chat@q4_k_m").model == "library/chat@q4_k_m"


def test_a_reply_of_200_with_an_error_doesn_t_repeat_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", KEY)
    said = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
    with served(lambda _: Odd(raw=said)) as server:
        (answer,) = only(list(model(f"{server.name}@TINY_KEY").complete(asking("你好"))))
    assert answer.finish == "error"
    assert "bad key (hidden)" in answer.error
    assert KEY not in answer.error
