"""Rows made in tests, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tunesmith.data.formats import RowError, parse, recognise
from tunesmith.data.read import RawRow
from tunesmith.records import Conversation, Message, Origin, Record

USER, GOOD, BAD = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad")
Q = {"role": "user", "content": "q"}


def turn(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def rows_of(values: Sequence[Any]) -> list[RawRow]:
    return [RawRow(value, Origin("rows.json", number + 1, number)) for number, value in enumerate(values)]


def read(*values: Any, answers: bool = True) -> tuple[str, list[Record]]:
    rows = rows_of(values)
    format = recognise(rows, answers=answers)
    return format.name, [parse(row, format, answers=answers) for row in rows]


def reason(value: Any, *good: Any, answers: bool = True) -> str:
    """Why a row is bad beside good ones."""
    rows = rows_of([*good, value])
    format = recognise(rows, answers=answers)
    for row in rows[:-1]:
        parse(row, format, answers=answers)
    with pytest.raises(RowError) as caught:
        parse(rows[-1], format, answers=answers)
    return str(caught.value)


def messages_of(record: Record) -> list[tuple[str, str]]:
    assert isinstance(record, Conversation)
    return [(turn.role, turn.content) for turn in record.messages]
