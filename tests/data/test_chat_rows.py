"""Turns: tools, marks, system prompts, and what is said of an order that makes no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.data.rows import GOOD, USER, Q, messages_of, read, reason, rows_of, turn
from tests.data.talks import with_template
from tunesmith.data.check import content_key
from tunesmith.data.formats import not_used, recognise
from tunesmith.errors import DataError
from tunesmith.records import Conversation, Message


def test_tool_calls_in_both_spellings() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "長安"}}}
    text = json.dumps({"name": "weather", "arguments": {"city": "長安"}})
    sharegpt = [("human", "q"), ("function_call", text), ("observation", ""), ("gpt", "good")]
    _, (one,) = read(
        {"conversations": [{"from": w, "value": t} for w, t in sharegpt], "tools": '[{"name": "weather"}]'}
    )
    called = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "長安"}'}}
    _, (two,) = read(
        {
            "messages": [
                Q,
                {"role": "assistant", "content": None, "tool_calls": [called]},
                turn("", "tool"),
                turn("good"),
            ],
            "tools": [{"name": "weather"}],
        }
    )
    assert isinstance(one, Conversation)
    assert one == two
    assert one.messages == (USER, Message("assistant", "", tool_calls=(call,)), Message("tool", ""), GOOD)
    assert one.tools == ({"name": "weather"},)


def test_a_tool_turn_keeps_its_name_and_the_call_it_answers() -> None:
    """The ids are those that the model's own template makes of the turns as they stand in the file."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}, "id": "call_1"}
    turns = [
        Q | {"name": "Li"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"},
        turn("good") | {"name": None},
    ]
    _, (record,) = read({"messages": turns})
    assert isinstance(record, Conversation)
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + ' [' + (m.name or '?') + ' ' }}"
        "{{- (m.tool_call_id or '?') + '] ' + m.content }}"
        "{%- for c in m.tool_calls or [] %}{{- c.id + c.function.name }}{%- endfor %}"
        "{{- '<|im_end|>' }}{%- endfor %}"
    )
    renderer = with_template("qwen2", template)
    plain = renderer.tokenizer.apply_chat_template(turns, tokenize=False)
    assert renderer.render(record, 4, prompt=False, thinking=False) == plain
    assert "tool [f call_1] 42" in plain
    assert "user [Li ?] q" in plain
    assert "'name' of turn 1 of messages is a number (7)" in reason(
        {"messages": [Q | {"name": 7}, turn("a")]}, {"messages": [Q, turn("a")]}
    )
    forged = replace(record, messages=(replace(USER, name="<|im_end|>"), *record.messages[1:]))
    with pytest.raises(DataError, match=r"the name contains '<\|im_end\|>'"):
        renderer.encode(forged, "all_replies")
    other = replace(record.messages[2], tool_call_id="call_2")
    assert content_key(record) != content_key(replace(record, messages=(*record.messages[:2], other)))


def test_a_key_of_a_turn_that_is_not_read_is_named() -> None:
    rows = rows_of([{"messages": [Q | {"id": "7", "name": "Li", "time": "noon"}, turn("good")]}])
    assert not_used(rows, recognise(rows)) == ["messages.id", "messages.time"]


def test_marks_on_messages() -> None:
    _, (record,) = read({"messages": [Q, turn("a") | {"train": False}, Q, turn("good") | {"weight": 1}]})
    assert isinstance(record, Conversation)
    assert [message.train for message in record.messages] == [None, False, None, True]


@pytest.mark.parametrize(
    ("turns", "word"),
    [
        ([], "no turn"),
        ([Q], "no reply to train on"),
        ([Q, Q, turn("a")], "two turns of the user in a row (turn 2)"),
        ([Q, turn("a"), turn("b")], "two turns of the assistant in a row (turn 3)"),
        ([turn("a"), Q, turn("b")], "starts with a turn of the assistant"),
        ([turn("s", "system"), turn("a")], "after the system turn it starts with a turn of the assistant"),
        ([turn("s", "system")], "no turn of the user"),
        ([Q, turn("a"), Q], "ends with a turn of the user"),
        ([Q, turn("s", "system"), turn("a")], "turn 2 is a system turn"),
        ([Q, turn("  \n")], "the reply is empty (turn 2)"),
        ([turn("", "system"), turn(" ", "user"), turn("a")], "the prompt is empty (turn 2)"),
        ([Q, turn("t", "tool"), turn("a")], "turn 2, a turn of the tool, follows a turn of the user"),
        ([turn("q", "usr"), turn("a")], "unknown role 'usr' (did you mean 'user'?)"),
        ([Q, {"role": "assistant"}], "turn 2 of messages has no 'content'"),
        ([Q, {"content": "a"}], "turn 2 of messages has no 'role'"),
        ([Q, "a"], "turn 2 of messages is text"),
        ([Q, {"role": "assistant", "content": 5}], "'content' of turn 2 of messages is a number (5)"),
        ([Q, {"role": 1, "content": "a"}], "'role' of turn 2 of messages is a number (1)"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, turn("a")],
            "isn't text (image_url)",
        ),
        ([Q, turn("a") | {"train": "no"}], "'train' of turn 2 of messages is text"),
        ([Q, turn("a") | {"train": False}], "every reply is marked train: false"),
        ([Q, turn("x\ud83d")], "half a character (\\ud83d)"),
        (
            [Q, turn('{"name": "f", "arguments": {"a": "\\ud83d"}}', "function_call"), turn("a")],
            "half a character (\\ud83d)",
        ),
        (
            [
                Q,
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": ["\\ud83d"]}'}]},
                turn("a"),
            ],
            "half a character (\\ud83d)",
        ),
        ([Q, turn("not JSON", "function_call"), turn("t", "tool"), turn("a")], "its text isn't JSON"),
        (
            [Q, {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}],
            "without the tool's name",
        ),
    ],
)
def test_bad_conversations_say_what_is_wrong(turns: list[Any], word: str) -> None:
    good = [{"messages": [Q, turn("good")]}] * 2
    assert word in reason({"messages": turns}, *good)


def test_parts_of_text_and_empty_system_turns_are_read() -> None:
    _, (record,) = read(
        {
            "messages": [
                turn(" ", "system"),
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                turn("good"),
            ]
        }
    )
    assert messages_of(record) == [("user", "q"), ("assistant", "good")]


def test_two_system_prompts_are_refused_unless_equal() -> None:
    row = {"messages": [turn("s", "system"), Q, turn("good")], "system": "s"}
    assert messages_of(read(row)[1][0])[0] == ("system", "s")
    assert "two system prompts" in reason(row | {"system": "other"}, row)
