"""Rows of a prompt and an answer in columns of their own: alpaca and prompt-completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.chat_rows import read_turns
from tunesmith.data.row_format import Format, RowError, cell, list_of, text_of
from tunesmith.records import Message


def read_prompt(row: Mapping[str, Any], format: Format) -> tuple[Message, ...]:
    """System, history and prompt of a row; one newline joins instruction and input. Raises RowError."""
    system = text_of(cell(row, format, "system"), format.columns.get("system", ""))
    before = [Message("system", system)] if system.strip() else []
    before += _history(row, format)
    prompt = cell(row, format, "prompt")
    if isinstance(prompt, list):
        turns = read_turns(prompt, format.columns["prompt"], format.tags)
        if system.strip() and turns and turns[0].role == "system":
            raise RowError(
                f"the system prompt is there twice: {format.columns['system']!r} and a system turn"
            )
        if text_of(cell(row, format, "query"), query := format.columns.get("query", "")).strip():
            raise RowError(f"{query!r} holds text beside a list of turns; put it into the last of them")
        return (*before, *turns)
    columns = [(part, format.columns[part]) for part in ("prompt", "query") if part in format.columns]
    texts = [text_of(cell(row, format, part), column) for part, column in columns]
    text = "\n".join(text for text in texts if text)
    if not text.strip():
        names = " and ".join(column for _, column in columns)
        raise RowError(f"the prompt is empty ({names})")
    return (*before, Message("user", text))


def read_response(row: Mapping[str, Any], format: Format, *, answers: bool) -> tuple[Message, ...]:
    """The answer's turns; none where it is missing and `answers` doesn't ask for it. Raises RowError."""
    value = cell(row, format, "response")
    name = format.columns.get("response", "")
    if isinstance(value, list):
        turns = read_turns(value, name, format.tags)
        if turns and turns[0].role != "assistant":
            raise RowError(f"{name} starts with a turn of the {turns[0].role}, not of the assistant")
    else:
        text = text_of(value, name)
        turns = (Message("assistant", text),) if text.strip() else ()
    if answers and not turns:
        raise RowError(f"{name!r} is {'null' if value is None else 'empty'}: there is no reply to train on")
    return turns


def _history(row: Mapping[str, Any], format: Format) -> list[Message]:
    """`[[user, assistant], …]` before the prompt. Its replies are trained on like any other."""
    name = format.columns.get("history", "")
    turns: list[Message] = []
    for number, pair in enumerate(list_of(cell(row, format, "history"), name), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"pair {number} of {name!r} isn't [user, assistant]")
        turns.append(Message("user", text_of(pair[0], f"the user's text in pair {number} of {name!r}")))
        turns.append(Message("assistant", text_of(pair[1], f"the reply in pair {number} of {name!r}")))
    return turns
