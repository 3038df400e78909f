"""Turns: tools, marks, system prompts, and what is said of an order that makes no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.data.rows import GOOD, USER, Q, messages_of, read, reason, turn
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
        ([turn("q", "usr"), turn("a")], "unknown role 'usr'; did you mean 'user'?"),
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
