"""Rows -> records: which format a file's rows have, with the reason, and each row parsed or refused.

alpaca              instruction, input, output, optional system, history [[user, assistant], …]
sharegpt            conversations: [{from, value}]
messages            messages or conversations: [{role, content}], optional train per message
prompt-completion   prompt, completion: texts or lists of messages
preference          a prompt (any of the above), chosen, rejected
labelled            any of the above with a boolean label or kto_tag
text                text, or a plain text file
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tunesmith.data.chat_rows import TURN_KEYS, check_tools, check_turns, read_turns
from tunesmith.data.pair_rows import read_prompt, read_response
from tunesmith.data.read import RawRow
from tunesmith.data.row_format import Format as Format
from tunesmith.data.row_format import RowError as RowError
from tunesmith.data.row_format import Tags, cell, described, text_of
from tunesmith.data.unknown_columns import nothing_fits
from tunesmith.records import Conversation, Labelled, Message, Preference, Record, Text

ALPACA = {
    "prompt": "instruction", "query": "input", "response": "output",
    "system": "system", "history": "history", "tools": "tools",
}  # fmt: skip
PAIR = {"prompt": "prompt", "response": "completion", "system": "system", "tools": "tools"}


def recognise(rows: Sequence[RawRow], *, answers: bool = True) -> Format:
    """The format that most rows have. Without `answers` (prompts only) a missing answer doesn't count.

    Raises DataError where no format fits more than half of the rows, with the columns and the nearest format.
    """
    shapes = Counter(_shape(row.value, answers) for row in rows)
    shapes_known = [(shape, count) for shape, count in shapes.most_common() if shape is not None]
    shape, count = shapes_known[0] if shapes_known else (None, 0)
    if shape is None or count * 2 <= len(rows):
        raise nothing_fits(rows, {_format(shape, answers).name: count for shape, count in shapes_known})
    format = _format(shape, answers)
    many = "every row has" if count == len(rows) else f"{count} of {len(rows)} readable rows have"
    if len(rows) == 1:
        many = "the only row has"
    what = _what(shape, format)
    return replace(
        format,
        reason=f"{format.name}, because it is a plain text file"
        if what == ""
        else f"{format.name}, because {many} {what}",
    )


def parse(row: RawRow, format: Format, *, answers: bool = True) -> Record:
    """The record of a row. Raises RowError with the reason; without `answers` a row may lack its answer."""
    value = row.value
    if isinstance(value, str):
        if format.name != "text" or "text" in format.columns:
            raise RowError("the row is plain text, not an object with columns")
        return Text(_raw_text(value, "the text"), row.origin)
    if format.name == "text" and "text" not in format.columns:
        raise RowError("the row is an object with columns, the others are plain text")
    for column in format.required:
        if column not in value:
            raise RowError(f"the column {column!r} is missing (there are: {', '.join(value) or 'none'})")
    if format.name == "text":
        return Text(_raw_text(cell(value, format, "text"), format.columns["text"]), row.origin, _id(value))
    if format.name == "preference":
        return _preference(row, value, format, answers)
    turns = check_turns(_masked(_conversation(value, format, answers), format), answers=answers)
    tools = check_tools(cell(value, format, "tools"), format.columns.get("tools", ""))
    conversation = Conversation(turns, row.origin, _id(value), tools)
    if format.name == "labelled":
        return Labelled(conversation, _label(cell(value, format, "kto_tag"), format.columns["kto_tag"]))
    return conversation


def not_used(rows: Sequence[RawRow], format: Format) -> list[str]:
    """The columns and keys of turns (`messages.timestamp`) that hold something and aren't read."""
    used = {*format.columns.values(), "id"}
    turn_keys = {format.tags.role, format.tags.content, *TURN_KEYS}
    lists = [column for part, column in format.columns.items() if part in _TURN_PARTS]
    found: dict[str, None] = {}
    for row in rows:
        if isinstance(row.value, str):
            continue
        found.update(
            (key, None) for key, value in row.value.items() if key not in used and value not in _NOTHING
        )
        for column in lists:
            turns = row.value.get(column)
            for turn in turns if isinstance(turns, list) else [turns]:
                if isinstance(turn, dict):
                    found.update(
                        (f"{column}.{key}", None)
                        for key, value in turn.items()
                        if key not in turn_keys and value not in _NOTHING
                    )
    return list(found)


_TURN_PARTS = ("messages", "prompt", "response", "chosen", "rejected")
_NOTHING: tuple[Any, ...] = (None, "", [], {})


class _Shape(NamedTuple):
    """What tells formats apart in one row: the family, where its prompt stands, how its turns are written."""

    name: str
    prompt: str = ""  # messages | conversations | instruction | prompt | text | "" (none, or plain text)
    turns: str = ""  # role | from | "" (no turns in lists)
    label: str = ""


def _shape(value: dict[str, Any] | str, answers: bool) -> _Shape | None:
    if isinstance(value, str):
        return _Shape("text")
    has = {column for column, content in value.items() if content is not None}
    prompt = _prompt_side(value, has)
    turns = _turn_style(value, has)
    if {"chosen", "rejected"} <= has and (prompt or turns):
        return _Shape("preference", prompt, turns)
    if prompt == "instruction":
        name = "alpaca" if "output" in has or not answers else ""
    elif prompt == "prompt":
        name = "prompt-completion" if "completion" in has or not answers else ""
    elif prompt:
        name = "sharegpt" if turns == "from" else "messages"
    else:
        name, prompt = ("text", "text") if isinstance(value.get("text"), str) else ("", "")
    if not name:
        return None
    label = "kto_tag" if "kto_tag" in has else "label" if _is_label(value.get("label")) else ""
    return _Shape(
        "labelled" if label and name != "text" else name, prompt, turns, label if name != "text" else ""
    )


def _prompt_side(value: Mapping[str, Any], has: set[str]) -> str:
    for column in ("messages", "conversations"):
        if column in has and _first_turn(value[column]) is not None:
            return column
    # Rows with all of prompt, completion and instruction are rather two texts with a task in a side column.
    if {"prompt", "completion"} <= has:
        return "prompt"
    return next((column for column in ("instruction", "prompt") if column in has), "")


def _turn_style(value: Mapping[str, Any], has: set[str]) -> str:
    for column in ("messages", "conversations", "prompt", "completion", "chosen", "rejected"):
        turn = _first_turn(value[column]) if column in has else None
        if turn is not None:
            return "from" if "from" in turn and "value" in turn else "role"
    return ""


def _first_turn(value: Any) -> Mapping[str, Any] | None:
    """The first element of a list of turns, if it looks like one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return _json_turn(value)
    first = value[0] if isinstance(value, list) and value else value
    known = isinstance(first, dict) and (
        {"role", "content"} <= first.keys() or {"from", "value"} <= first.keys()
    )
    return first if known else None


def _json_turn(value: str) -> Mapping[str, Any] | None:
    # A list of turns as JSON text in a CSV cell; its keys are enough to tell the style.
    for keys in (("from", "value"), ("role", "content")):
        if all(f'"{key}"' in value for key in keys):
            return dict.fromkeys(keys)
    return None


def _is_label(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _format(shape: _Shape, answers: bool) -> Format:
    """The format of a shape; its reason is still to be written."""
    tags = Tags("from", "value") if shape.turns == "from" else Tags()
    columns: dict[str, str] = {}
    if shape.prompt in ("messages", "conversations"):
        columns = {"messages": shape.prompt, "system": "system", "tools": "tools"}
    elif shape.prompt in ("instruction", "prompt"):
        columns = dict(ALPACA if shape.prompt == "instruction" else PAIR)
    elif shape.prompt == "text":
        columns = {"text": "text"}
    required = [shape.prompt] if shape.prompt else []
    if shape.name == "preference":
        columns = {k: v for k, v in columns.items() if k != "response"} | {
            "chosen": "chosen",
            "rejected": "rejected",
        }
        required += ["chosen", "rejected"]
    elif answers and "response" in columns:
        required.append(columns["response"])
    if shape.label:
        columns["kto_tag"] = shape.label
        required.append(shape.label)
    return Format(shape.name, "", columns, tags, tuple(required))


def _what(shape: _Shape, format: Format) -> str:
    names = list(format.required)
    if not names:
        return ""
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    turns = f" as turns with {format.tags.role} and {format.tags.content}" if shape.turns else ""
    return listed + turns


def _conversation(value: Mapping[str, Any], format: Format, answers: bool) -> tuple[Message, ...]:
    if "messages" not in format.columns:
        return (*read_prompt(value, format), *read_response(value, format, answers=answers))
    turns = read_turns(cell(value, format, "messages"), format.columns["messages"], format.tags)
    name = format.columns.get("system", "")
    system = text_of(cell(value, format, "system"), name)
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content != system:
            raise RowError(f"there are two system prompts: the column {name!r} and the first turn")
        return turns
    return (Message("system", system), *turns)


def _masked(turns: tuple[Message, ...], format: Format) -> tuple[Message, ...]:
    if not format.mask_history:
        return turns
    return (
        tuple(
            replace(turn, train=False) if turn.role == "assistant" and turn.train is None else turn
            for turn in turns[:-1]
        )
        + turns[-1:]
    )


def _preference(row: RawRow, value: Mapping[str, Any], format: Format, answers: bool) -> Preference:
    sides = [_replies(value, format, part) for part in ("chosen", "rejected")]
    if "messages" in format.columns or "prompt" in format.columns:
        prompt = _conversation(value, replace(format, name=""), False)
        # Some files repeat the prompt in front of both replies.
        sides = [
            side[len(prompt) :] if len(side) > len(prompt) and side[: len(prompt)] == prompt else side
            for side in sides
        ]
    else:
        shared = 0
        while shared < min(map(len, sides)) - 1 and sides[0][shared] == sides[1][shared]:
            shared += 1
        prompt, sides = sides[0][:shared], [side[shared:] for side in sides]
        if not prompt:
            raise RowError("chosen and rejected don't begin with the same prompt")
    checked = check_turns(prompt, answers=False)
    if checked[-1].role == "assistant":
        raise RowError("the prompt ends with a turn of the assistant")
    for part, side in zip(("chosen", "rejected"), sides, strict=True):
        try:
            check_turns((*checked, *side), answers=answers)
        except RowError as error:
            raise RowError(f"{format.columns[part]!r}: {error}") from None
    if sides[0] == sides[1]:
        raise RowError("chosen and rejected are the same")
    return Preference(checked, sides[0], sides[1], row.origin, _id(value))


def _replies(value: Mapping[str, Any], format: Format, part: str) -> tuple[Message, ...]:
    content, name = cell(value, format, part), format.columns[part]
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        return read_turns(content, name, format.tags)
    return (Message("assistant", text_of(content, repr(name))),)


def _label(value: Any, name: str) -> bool:
    if not _is_label(value):
        raise RowError(f"{name!r} is {described(value)}, not true or false")
    return value if isinstance(value, bool) else value.strip().lower() == "true"


def _raw_text(value: Any, name: str) -> str:
    text = text_of(value, name)
    if not text.strip():
        raise RowError(f"{name} is empty")
    return text


def _id(value: Mapping[str, Any]) -> str:
    found = value.get("id")
    return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""
