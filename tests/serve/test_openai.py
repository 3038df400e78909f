"""The API over real HTTP on tiny models: answers, streams, and many requests at once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.serve.opened import TEXT, Api, serving, texts, until
from tunesmith.infer.generate import continuations, generate
from tunesmith.infer.local import LocalModel
from tunesmith.records import Conversation, Message, Origin

PROMPTS = [
    "白日依山盡，黃河入海流。",
    "Hi",
    "How do I ask for leave? Answer in one line.",
    "圖書館幾點開門？",
]
NAMES = ("a", "b", "base")


@pytest.fixture(scope="module")
def alone(runs: Path) -> dict[str, LocalModel]:
    """The same models by themselves, each from a load of its own."""
    return {name: tunesmith.load(runs / name, dtype="fp32") for name in NAMES}


def expected(model: LocalModel, text: str, **sampling: Any) -> str:
    return model.chat(text, max_new_tokens=12, **sampling)


def test_the_models_are_the_runs_and_their_base(api: Api) -> None:
    status, content, _ = api.ask("GET", "/v1/models")
    listed = json.loads(content)
    assert (status, listed["object"]) == (200, "list")
    assert [(m["id"], m["object"], m["parent"]) for m in listed["data"]] == [
        ("a", "model", "base"), ("b", "model", "base"), ("base", "model", None),
    ]  # fmt: skip
    one = json.loads(api.ask("GET", "/v1/models/b")[1])
    assert one == listed["data"][1]
    status, content, _ = api.ask("GET", "/v1/models/none")
    assert (status, json.loads(content)["error"]["code"]) == (404, "model_not_found")
    assert json.loads(api.ask("GET", "/health")[1]) == {
        "status": "ok", "models": ["a", "b", "base"], "answers": 0, "room": 72,
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_greedy_answer_is_that_of_the_model_alone(
    api: Api, alone: dict[str, LocalModel], name: str
) -> None:
    model = alone[name]
    for text in PROMPTS:
        reply = api.chat(text, name)
        (choice,) = reply["choices"]
        assert choice["message"] == {"role": "assistant", "content": expected(model, text), "refusal": None}
        prompt = Conversation((Message("user", text),), Origin("x", 1, 0))
        ((done,),) = generate(
            model.model, model.renderer, [prompt], model.sampling.model_copy(update={"max_new_tokens": 12})
        )
        assert choice["finish_reason"] == done.finish
        assert reply["usage"] == {
            "prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens,
            "total_tokens": done.prompt_tokens + done.completion_tokens,
        }  # fmt: skip
        assert (reply["object"], reply["model"]) == ("chat.completion", name)


def test_many_at_once_to_all_models_get_the_answers_that_each_gets_alone(
    api: Api, alone: dict[str, LocalModel]
) -> None:
    asked = [(name, text) for _ in range(3) for text in PROMPTS for name in NAMES]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda one: api.text(one[1], one[0]), asked))
    wanted = {(name, text): expected(alone[name], text) for name, text in set(asked)}
    assert found == [wanted[one] for one in asked]
    assert len(set(wanted.values())) > len(PROMPTS), "the models answer differently"


def test_a_stream_is_the_answer_in_pieces_and_ends_with_done(api: Api) -> None:
    whole = api.text(PROMPTS[0])
    found = api.stream(PROMPTS[0])
    assert found[-1] == "[DONE]"
    assert texts(found) == whole
    first, *_, last = found[:-1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert all(c["finish_reason"] is None for e in found[:-2] for c in e["choices"])
    assert all(e["object"] == "chat.completion.chunk" and "usage" not in e for e in found[:-1])
    assert len({e["id"] for e in found[:-1]}) == 1
    assert len(found) > 5, "it came in pieces"


def test_the_counts_come_last_where_they_are_asked_for(api: Api) -> None:
    found = api.stream(PROMPTS[0], stream_options={"include_usage": True})
    *parts, counts, done = found
    assert done == "[DONE]"
    assert (counts["choices"], counts["usage"]) == ([], api.chat(PROMPTS[0])["usage"])
    assert all(part["usage"] is None for part in parts)


def test_a_stop_text_that_spans_tokens_ends_the_answer_and_never_leaks(api: Api) -> None:
    body = {"logprobs": True, "max_tokens": 40}
    reply = api.chat(PROMPTS[0], "b", **body)
    tokens = [one["token"] for one in reply["choices"][0]["logprobs"]["content"]]
    whole = reply["choices"][0]["message"]["content"]
    # Two whole tokens that follow each other: the last character of the one and the first of the other.
    at = next(
        i for i in range(4, len(tokens) - 1)
        if "\ufffd" not in tokens[i] + tokens[i + 1] and tokens[i][-1] + tokens[i + 1][0] in whole
        and whole.index(tokens[i][-1] + tokens[i + 1][0]) > 3
    )  # fmt: skip
    stop = tokens[at][-1] + tokens[at + 1][0]
    wanted = whole[: whole.index(stop)]
    for given in (stop, ["never there", stop]):
        stopped = api.chat(PROMPTS[0], "b", stop=given, **body)
        choice = stopped["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (wanted, "stop")
        assert "".join(t["token"] for t in choice["logprobs"]["content"]) in whole
    found = api.stream(PROMPTS[0], "b", stop=stop, **body)
    pieces = [c["delta"].get("content", "") for e in found[:-1] for c in e["choices"]]
    assert "".join(pieces) == wanted
    shown = [
        t["token"] for e in found[:-1] for c in e["choices"] for t in (c["logprobs"] or {}).get("content", ())
    ]
    assert stop not in "".join(shown)
    assert stopped["usage"]["completion_tokens"] < reply["usage"]["completion_tokens"]


def test_a_seed_draws_the_same_answers_and_several_differ(api: Api, alone: dict[str, LocalModel]) -> None:
    drawn = {"temperature": 1.3, "seed": 5, "n": 3}
    first, again = (api.chat("Hi", **drawn)["choices"] for _ in range(2))
    answers = [choice["message"]["content"] for choice in first]
    assert first == again
    assert [choice["index"] for choice in first] == [0, 1, 2]
    assert len({*answers}) == 3
    assert answers[0] == expected(alone["a"], "Hi", temperature=1.3, top_p=0.9, seed=5), (
        "as `generate` draws it"
    )
    found = api.stream("Hi", **drawn)
    assert [texts(found, index) for index in range(3)] == answers
    assert api.text("Hi", **{**drawn, "n": 1, "seed": 6}) != answers[0]
    counts = api.chat("Hi", **drawn)["usage"]
    assert counts["completion_tokens"] == 36
    assert counts["prompt_tokens"] == api.chat("Hi")["usage"]["prompt_tokens"], "the prompt counts once"


def test_log_probabilities_belong_to_the_text(api: Api) -> None:
    (choice,) = api.chat(PROMPTS[0], logprobs=True, top_logprobs=3)["choices"]
    entries = choice["logprobs"]["content"]
    raw = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert raw.decode("utf-8", "replace").rstrip("\ufffd") == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)
    assert all(entry["logprob"] == entry["top_logprobs"][0]["logprob"] for entry in entries), "greedy"
    assert all(set(entry) == {"token", "bytes", "logprob", "top_logprobs"} for entry in entries)
    found = api.stream(PROMPTS[0], logprobs=True, top_logprobs=3)
    streamed = [t for e in found[:-1] for c in e["choices"] for t in (c["logprobs"] or {}).get("content", ())]
    assert streamed == entries
    assert api.chat("Hi")["choices"][0]["logprobs"] is None


def test_a_completion_goes_on_with_a_text_or_with_tokens(api: Api, alone: dict[str, LocalModel]) -> None:
    model = alone["a"]
    ids = model.renderer.tokenizer("The library")["input_ids"]
    sampling = model.sampling.model_copy(update={"max_new_tokens": 12})
    (wanted,) = continuations(model.model, model.renderer, [ids], sampling)
    body = {"model": "a", "max_tokens": 12, "temperature": 0}
    for prompt in ("The library", ids, ["The library", "Hi"]):
        status, reply = api.post(TEXT, prompt=prompt, logprobs=2, **body)
        assert status == 200
        first = reply["choices"][0]
        assert (reply["object"], first["text"], first["finish_reason"]) == (
            "text_completion",
            wanted.text,
            wanted.finish,
        )
        (count,) = {len(column) for column in first["logprobs"].values()}
        assert 6 < count <= 12, "none for the bytes of a character that the limit cut in two"
        assert first["logprobs"]["text_offset"][0] == 0
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    status, content, _ = api.ask("POST", TEXT, {**body, "prompt": "The library", "stream": True})
    parts = [json.loads(line[6:]) for line in content.decode().split("\n\n")[:-2]]
    assert "".join(part["choices"][0]["text"] for part in parts) == wanted.text
    assert content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("ids", [[100000], [-1]])
def test_numbers_that_are_no_tokens_are_refused(api: Api, ids: list[int]) -> None:
    status, reply = api.post(TEXT, model="a", prompt=ids)
    assert (status, reply["error"]["param"]) == (400, "prompt")


def test_answers_follow_a_schema(api: Api) -> None:
    pytest.importorskip("llguidance", reason="json_schema needs the extra schema")
    schema = {
        "type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"],
        "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    choice = api.chat("幾點？", response_format=form, max_tokens=60)["choices"][0]
    assert set(json.loads(choice["message"]["content"])) == {"open"}
    assert choice["finish_reason"] == "stop"
    assert api.text("幾點？", response_format={"type": "json_object"}).startswith("{")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    messages = [{"role": "user", "content": "Hi"}]
    status, reply = api.post("/v1/chat/completions", model="a", messages=messages, response_format=bad)
    assert (status, reply["error"]["param"]) == (400, "response_format")


def test_an_unknown_model_and_a_wrong_path_are_told(api: Api) -> None:
    status, reply = api.post(
        "/v1/chat/completions", model="gpt-4", messages=[{"role": "user", "content": "Hi"}]
    )
    assert (status, reply["error"]["code"], reply["error"]["param"]) == (404, "model_not_found", "model")
    assert "There are: a, b, base" in reply["error"]["message"]
    assert api.post("/v1/embeddings", model="a")[0] == 404
    assert api.post("/v1/models")[0] == 405
    assert api.ask("GET", "/v1/completions")[0] == 405


def test_half_a_character_as_a_name_is_refused_as_any_other(api: Api) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    status, reply = api.post("/v1/chat/completions", model="\ud800", messages=messages)
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    status, reply = api.post("/v1/chat/completions", model="a", messages=messages, **{"\ud800": 1})
    assert (status, reply["error"]["param"]) == (400, "?")


def test_a_mistake_of_ours_is_told_without_anybody_s_text(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a secret question")

    monkeypatch.setattr("tunesmith.serve.openai.read", broken)
    before = len(api.seen)
    status, reply = api.post("/v1/chat/completions", model="a")
    assert (status, reply["error"]["code"], reply["error"]["type"]) == (500, "internal_error", "server_error")
    assert "KeyError in test_openai.py" in reply["error"]["message"]
    until(lambda: any(seen.status == 500 for seen in api.seen[before:]), "it is logged")
    assert "secret" not in str(reply) + str(api.seen[before:])
    monkeypatch.undo()
    assert api.text("Hi") != ""


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(api: Api) -> None:
    messages = [{"role": "user", "content": "白日依山盡" * 200}]
    status, reply = api.post("/v1/chat/completions", model="a", messages=messages)
    assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")
    count = int(reply["error"]["message"].split("has ")[1].split()[0])
    assert count > 512
    assert "reads 512 here" in reply["error"]["message"]


def test_an_answer_ends_where_the_context_does(api: Api) -> None:
    reply = api.chat("Hi", "base", max_tokens=100000, logprobs=True, response_format=None)
    assert reply["usage"]["total_tokens"] <= 512


def test_a_control_token_in_a_text_is_refused(api: Api) -> None:
    messages = [{"role": "user", "content": "Hi<|eot_id|>"}]
    status, reply = api.post("/v1/chat/completions", model="a", messages=messages)
    assert (status, reply["error"]["param"]) == (400, "messages")
    assert "<|eot_id|>" in reply["error"]["message"]


def test_a_connection_is_kept_for_the_next_request(api: Api) -> None:
    connection = api.connect()
    headers = {"Authorization": api.bearer, "Content-Type": "application/json"}
    body = {"model": "a", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    for stream in (False, True, False):
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": stream}), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.read()
        assert not answer.will_close
    connection.close()


def test_every_request_is_logged_with_its_counts_and_without_its_text(runs: Path) -> None:
    with serving(runs / "a") as own:
        own.chat("a secret question", "a", max_tokens=5)
        own.ask("GET", "/v1/models", Authorization="Bearer another-secret")
        until(lambda: len(own.seen) == 2, "a line comes after the answer")
        first, second = own.seen
    assert (first.method, first.path, first.status, first.model) == ("POST", "/v1/chat/completions", 200, "a")
    assert first.new_tokens == 5
    assert first.prompt_tokens > 5
    assert (second.status, second.model) == (401, "")
    assert "secret" not in str(own.seen)
    assert own.ready.key not in str(own.seen)


def test_models_with_their_own_settings_where_a_request_says_nothing(runs: Path) -> None:
    with serving(runs / "base", sampling={"do_sample": False, "max_new_tokens": 4}) as own:
        messages = [{"role": "user", "content": "Hi"}]
        status, reply = own.post("/v1/chat/completions", model="base", messages=messages)
        assert (status, reply["usage"]["completion_tokens"]) == (200, 4)
        assert reply["choices"][0]["message"]["content"] == own.text("Hi", "base", max_tokens=4)
        assert threading.active_count() < 20
