"""What a request asks for: fields obeyed, neutral values passed, everything else refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.serve.asking import Refused, Wanted, read
from tunesmith.serve.fields import KNOWN, LABELS, UNSUPPORTED, Kind

HI = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> Wanted:
    return read("chat", {"model": "a", "messages": HI, **fields}, {})


def text(**fields: Any) -> Wanted:
    return read("text", {"model": "a", "prompt": "Hi", **fields}, {})


def refusal(kind: Kind = "chat", **fields: Any) -> Refused:
    body = {"model": "a", "messages": HI} if kind == "chat" else {"model": "a", "prompt": "Hi"}
    with pytest.raises(Refused) as caught:
        read(kind, {**body, **fields}, {})
    assert caught.value.status == 400
    assert caught.value.body()["error"]["type"] == "invalid_request_error"
    return caught.value


def test_every_setting_arrives_under_its_own_name() -> None:
    fields = {
        "temperature": 0.5, "top_p": 0.8, "top_k": 7, "min_p": 0.1, "presence_penalty": 0.3, "seed": 4,
        "frequency_penalty": 1, "repetition_penalty": 1.2, "repetition_penalty_range": 9,
        "no_repeat_ngram_size": 3, "max_tokens": 5, "stop": ["a", "b"],
    }  # fmt: skip
    found = chat(**fields).sampling.given()
    assert found == {
        **{k: v for k, v in fields.items() if k != "max_tokens"},
        "max_new_tokens": 5,
        "stop": ("a", "b"),
    }
    assert chat(max_completion_tokens=6).sampling.max_new_tokens == 6
    assert chat(max_tokens=6, max_completion_tokens=6).sampling.max_new_tokens == 6
    assert chat(do_sample=False).sampling.given() == {"do_sample": False}
    assert text(logprobs=3).sampling.logprobs == 3
    assert (chat(logprobs=True).sampling.logprobs, chat(logprobs=True, top_logprobs=5).sampling.logprobs) == (
        0,
        5,
    )
    assert (chat(n=3).n, chat(stream=True).stream) == (3, True)
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage


def test_what_a_request_does_not_say_is_as_in_a_chat_or_as_the_server_was_told() -> None:
    assert chat().sampling.given() == {"temperature": 0.7, "top_p": 0.9}
    told = read("chat", {"model": "a", "messages": HI, "top_p": 1}, {"temperature": 0.3, "max_new_tokens": 9})
    assert told.sampling.given() == {"temperature": 0.3, "top_p": 1.0, "max_new_tokens": 9}
    greedy = {"do_sample": False}
    assert read("chat", {"model": "a", "messages": HI}, greedy).sampling.given() == greedy
    drawn = read("chat", {"model": "a", "messages": HI, "temperature": 1}, greedy).sampling
    assert drawn.samples
    assert drawn.temperature == 1.0


@pytest.mark.parametrize("zero", [0, 0.0])
def test_temperature_zero_is_the_likeliest_token_whatever_else_is_said(zero: float) -> None:
    found = read("chat", {"model": "a", "messages": HI, "temperature": zero, "top_p": 0.5}, {"top_k": 5})
    assert not found.sampling.samples
    assert found.sampling.given() == {"do_sample": False}


def test_neutral_values_of_what_is_not_supported_are_no_error() -> None:
    """As Open WebUI, Chatbox, LangChain and the openai package send them."""
    plain = chat().sampling
    neutral: dict[str, Any] = {
        "stream": False, "n": 1, "stop": None, "tools": None, "tool_choice": None, "logit_bias": {},
        "frequency_penalty": None, "user": "me", "response_format": {"type": "text"}, "logprobs": False,
        "top_logprobs": None, "seed": None, "max_tokens": None, "functions": [], "store": False,
        "modalities": ["text"], "parallel_tool_calls": True, "service_tier": "auto", "metadata": {"a": "b"},
        "stream_options": None, "audio": None, "reasoning_effort": None, "num_beams": 1,
    }  # fmt: skip
    assert chat(**neutral).sampling == plain
    assert text(echo=False, best_of=1, suffix=None, logit_bias=None, stop=[], logprobs=None).sampling == plain
    again = {"role": "assistant", "content": "Hello", "refusal": None, "tool_calls": None, "annotations": []}
    assert len(chat(messages=[*HI, again, *HI]).prompts[0]) == 3


VALUES: dict[str, Any] = {
    "parallel_tool_calls": "yes", "store": True, "echo": True, "best_of": 2, "num_beams": 4, "suffix": "!",
    "modalities": ["text", "audio"], "tool_choice": "required", "tools": [{"type": "function"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in UNSUPPORTED.items() for name in names]
)
def test_what_is_not_supported_is_refused_by_name(kind: Kind, name: str) -> None:
    error = refusal(kind, **{name: VALUES.get(name, "x")})
    assert error.param == name
    assert f"{name} isn't supported" in error.message


@pytest.mark.parametrize(
    "name",
    ["chat_template", "chat_template_kwargs", "add_generation_prompt", "trust_remote_code", "url", "_",
     "max_length", "json_schema", "guided_json", "stop_token_ids", "eos_token_id", "temprature"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["chat", "text"])
def test_an_unknown_field_is_refused_by_name(kind: Kind, name: str) -> None:
    error = refusal(kind, **{name: "x"})
    assert error.param == name
    assert "isn't a field that this server knows" in error.message


def test_a_field_that_was_meant_is_named() -> None:
    assert "did you mean 'temperature'?" in refusal(temprature=1).message
    assert "did you mean 'max_tokens'?" in refusal(max_new_tokens=1).message


def test_a_chat_has_no_prompt_and_a_completion_no_messages() -> None:
    assert refusal("chat", prompt="x").param == "prompt"
    assert refusal("text", messages=HI).param == "messages"
    assert not set(LABELS) & {*KNOWN["chat"], *UNSUPPORTED["chat"]}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": None}, "model", "model is missing"),
        ({"model": 3}, "model", "model is missing"),
        ({"messages": None}, "messages", "missing or empty"),
        ({"messages": []}, "messages", "missing or empty"),
        ({"messages": ["Hi"]}, "messages[0]", "isn't an object"),
        ({"messages": [{"role": "pirate", "content": "Hi"}]}, "messages[0].role", "system, developer, user"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role", "tools aren't supported"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be a text"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "is empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "no message of the user"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages", "end with the user's"),
        ({"messages": [{**HI[0], "name": "Li"}]}, "messages[0].name", "isn't supported"),
        ({"messages": [{**HI[0], "colour": "x"}]}, "messages[0].colour", "isn't known"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "lone surrogate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         "messages[0].content[0]", "image_url isn't supported"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
         "messages[0].content[0]", "input_audio"),
        ({"n": 0}, "n", "from 1 to 16"), ({"n": 17}, "n", "from 1 to 16"), ({"n": True}, "n", "whole number"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "goes with stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "include_usage"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "up to 4"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": 3}, "stop", "must be a text"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"temperature": "hot"}, "temperature", "temperature"),
        ({"temperature": True}, "temperature", "temperature"),
        ({"temperature": float("nan")}, "temperature", "temperature"),
        ({"top_p": 1.5}, "top_p", "top_p"), ({"seed": -1}, "seed", "seed"), ({"seed": 1.5}, "seed", "seed"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens", "from 1 on"), ({"max_tokens": -1}, "max_tokens", "from 1 on"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "different things"),
        ({"top_logprobs": 2}, "top_logprobs", "goes with logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"logprobs": 3}, "logprobs", "true or false"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": "json"}, "response_format", "json_object"),
        # A text would be the name of a file to the settings that it becomes.
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": "/etc/passwd"}}},
         "response_format", "json_schema"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_with_what_would_be_right(
    fields: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize(
    "prompt", [None, "", [], [""], [[]], 3, [1, "a"], [[1], [True]], {"a": 1}, ["x"] * 17]
)
def test_a_completion_wants_a_text_or_tokens(prompt: Any) -> None:
    assert refusal("text", prompt=prompt).param == "prompt"


def test_several_prompts_of_either_kind() -> None:
    assert text(prompt=["a", "b"]).prompts == ["a", "b"]
    assert text(prompt=[1, 2]).prompts == [[1, 2]]
    assert text(prompt=[[1, 2], [3]]).prompts == [[1, 2], [3]]
    assert "is 18; 16 is the most" in refusal("text", prompt=["a"] * 9, n=2).message


def test_all_problems_are_told_at_once() -> None:
    error = refusal(bogus=1, logit_bias={"1": 2}, n=0, top_p=2)
    assert error.param == "bogus"
    for name in ("bogus", "logit_bias", "n must be", "top_p"):
        assert name in error.message


def test_text_parts_are_one_text_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "白日"}, {"type": "text", "text": "依山盡"}]
    (messages,) = chat(
        messages=[{"role": "developer", "content": "短"}, {"role": "user", "content": parts}]
    ).prompts
    assert [(m.role, m.content) for m in messages] == [("system", "短"), ("user", "白日依山盡")]  # type: ignore[union-attr]


def test_a_schema_arrives_and_goes_with_no_stop() -> None:
    pytest.importorskip("llguidance", reason="json_schema needs the extra schema")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert chat(response_format=form).sampling.json_schema == schema
    assert chat(response_format={"type": "json_object"}).sampling.json_schema == {"type": "object"}
    assert refusal(response_format=form, stop="x").param == "response_format"


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 1e-40), ("temperature", 9e-4), ("repetition_penalty", 1e-40),
     ("repetition_penalty", 1e39), ("no_repeat_ngram_size", 65),
     ("stop", "x" * 1001), ("stop", ["a", "x" * 1001]),
     ("messages", HI * 4097)],
)  # fmt: skip
def test_values_at_which_numbers_or_memory_overflow_are_refused(field: str, value: Any) -> None:
    assert refusal(**{field: value}).param == field


def test_many_problems_are_told_in_a_bounded_message() -> None:
    many = refusal(**{f"f{at}": 1 for at in range(5000)})
    assert many.message.endswith(" And 4980 more.")
    assert len(many.message) < 5000
    long = refusal(**{"x" * 100_000: 1})
    assert len(long.message) < 500
    assert len(long.param or "") < 100
    messages = [{"role": "user", "content": "Hi", "x" * 100_000: 1}]
    found = refusal(messages=messages)
    assert len(found.message) < 500
    assert len(found.param or "") < 100
