"""What a row format is: which column plays which part, and how a cell is read without changing it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The part a column plays; the names are LLaMA-Factory's, where it has one.
PARTS = (
    "prompt", "query", "response", "history", "system", "tools", "messages",
    "chosen", "rejected", "kto_tag", "text",
)  # fmt: skip


class RowError(ValueError):
    """A row can't be used; the message says why, without the place."""


@dataclass(frozen=True)
class Tags:
    """The keys of a turn and the names of its roles. `role_names` None: every name in common use."""

    role: str = "role"
    content: str = "content"
    role_names: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Format:
    """A row format: its name, why it was chosen, and the column of each part (none where it has no column).

    `required` are the columns that every row must have. `mask_history` trains only the last reply of a row.
    """

    name: str
    reason: str
    columns: Mapping[str, str]
    tags: Tags = field(default_factory=Tags)
    required: tuple[str, ...] = ()
    mask_history: bool = False


def text_of(value: Any, name: str) -> str:
    """A cell's text, unchanged; none is the empty text. Raises RowError for anything that isn't text."""
    if value is None:
        return ""
    if isinstance(value, str):
        require_whole(value, name)
        return value
    raise RowError(f"{name} is {described(value)}, not text")


def require_whole(value: Any, name: str) -> None:
    """Raise RowError if any text in a cell's value, keys included, holds half a character."""
    if half := half_character(value):
        raise RowError(f"{name} holds {half}")


def half_character(value: Any) -> str:
    """The lone surrogate in a value as JSON decodes it, in words; "" where every text in it is whole."""
    if isinstance(value, str):
        found = _HALF_CHARACTER.search(value)
        return f"half a character (\\u{ord(found[0]):04x}), which no tokenizer can read" if found else ""
    if isinstance(value, dict):
        return next(filter(None, map(half_character, (*value, *value.values()))), "")
    return next(filter(None, map(half_character, value)), "") if isinstance(value, list) else ""


def list_of(value: Any, name: str) -> list[Any]:
    """A cell's list; none is the empty list. A list written as JSON text (a CSV cell) counts as one."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError(f"{name} is text, not a list (and not a list written as JSON)") from None
    if value is None or value == "":
        return []
    if isinstance(value, list):
        require_whole(value, name)
        return value
    if isinstance(value, str):
        return list_of(value.strip() or None, name)
    raise RowError(f"{name} is {described(value)}, not a list")


def cell(row: Mapping[str, Any], format: Format, part: str) -> Any:
    """The value of the part's column; None where the format has no such part or the row no such column."""
    column = format.columns.get(part)
    return None if column is None else row.get(column)


def described(value: Any) -> str:
    """A value in words: "a number (42)", "a list", …"""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()}"
    if isinstance(value, int | float):
        return f"a number ({value!r})"
    kind = type(value).__name__
    return {"str": "text", "list": "a list", "dict": "an object", "bytes": "bytes"}.get(kind, f"a {kind}")


_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
