"""Turns of a conversation: reading them from a row, and checking that their order makes sense."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tunesmith.data.row_format import RowError, Tags, described, list_of, require_whole, text_of
from tunesmith.records import Message, Role
from tunesmith.settings import nearest

CALL = "function_call"  # a turn whose text is the call of a tool
# Every name for a role that rows found in the wild have.
ROLE_NAMES: Mapping[str, str] = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant",
    "model": "assistant", "chatgpt": "assistant", "system": "system", "developer": "system", "tool": "tool",
    "observation": "tool", "function": "tool", "function_response": "tool", CALL: CALL,
}  # fmt: skip
TURN_KEYS = {"train", "weight", "tool_calls", "tool_call_id", "name"}


def read_turns(value: Any, name: str, tags: Tags) -> tuple[Message, ...]:
    """The turns in a cell. Raises RowError that names the turn (1-based) and what is wrong with it."""
    turns = list_of(value, name)
    return tuple(_turn(turn, f"turn {number} of {name}", tags) for number, turn in enumerate(turns, 1))


def check_turns(messages: Sequence[Message], *, answers: bool) -> tuple[Message, ...]:
    """The turns, if a model can be trained on them (`answers`) or asked by them (not `answers`).

    Order: an optional system turn, then a user's, then replies, each to a user's or a tool's turn. Without
    `answers` the last reply may be missing or empty (then it is left out). Raises RowError.
    """
    # Numbers are the row's own, although an empty system turn counts as none.
    turns = [(n, turn) for n, turn in enumerate(messages, 1) if turn.role != "system" or turn.content.strip()]
    if not answers and turns and turns[-1][1].role == "assistant" and _is_empty(turns[-1][1]):
        turns.pop()
    for number, turn in turns:
        if turn.role in ("user", "assistant") and _is_empty(turn):
            raise RowError(
                f"the {'reply' if turn.role == 'assistant' else 'prompt'} is empty (turn {number})"
            )
    system = turns[:1] if turns and turns[0][1].role == "system" else []
    talk = turns[len(system) :]
    if not talk:
        raise RowError("there is no turn of the user" if turns else "there is no turn")
    if talk[0][1].role != "user":
        raise RowError(f"{'' if not system else 'after the system turn '}it starts with {_of(talk[0][1])}")
    for (_, before), (number, turn) in pairwise(talk):
        if turn.role == "system":
            raise RowError(f"turn {number} is a system turn; only the first may be one")
        if turn.role not in _MAY_FOLLOW[before.role]:
            raise RowError(
                f"two turns of the {turn.role} in a row (turn {number})"
                if before.role == turn.role
                else f"turn {number}, {_of(turn)}, follows {_of(before)}"
            )
    if answers:
        _check_answers([turn for _, turn in talk])
    return tuple(turn for _, turn in turns)


def check_tools(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """The tools a row declares: a list of JSON schemas, or that list as JSON text."""
    tools = list_of(value, name)
    for tool in tools:
        if not isinstance(tool, dict):
            raise RowError(f"{name} holds {described(tool)}, not the description of a tool")
    return tuple(tools)


_MAY_FOLLOW: Mapping[Role, tuple[Role, ...]] = {
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
    "system": (),
}


def _check_answers(talk: Sequence[Message]) -> None:
    if not any(turn.role == "assistant" for turn in talk):
        raise RowError("there is no reply to train on")
    if talk[-1].role != "assistant":
        raise RowError(f"it ends with {_of(talk[-1])} that nobody answers")
    # With every reply switched off by the row itself, nothing of it would be learnt.
    if all(turn.train is False for turn in talk if turn.role == "assistant") and not any(
        t.train for t in talk
    ):
        raise RowError("every reply is marked train: false, so nothing is left to train on")


def _of(turn: Message) -> str:
    return f"a turn of the {turn.role}"


def _is_empty(turn: Message) -> bool:
    return not turn.content.strip() and not turn.tool_calls


def _turn(turn: Any, name: str, tags: Tags) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"{name} is {described(turn)}, not an object with {tags.role} and {tags.content}")
    if turn.get(tags.role) is None:
        raise RowError(f"{name} has no {tags.role!r} (it has {', '.join(turn) or 'nothing'})")
    role = _role(turn[tags.role], name, tags)
    calls = _calls(turn.get("tool_calls"), name)
    content = _content(turn.get(tags.content), f"{tags.content!r} of {name}")
    if turn.get(tags.content) is None and not calls:
        raise RowError(f"{name} has no {tags.content!r} (it has {', '.join(turn)})")
    # A data set may have its own tags under these names.
    speaker, answered = (
        "" if key in (tags.role, tags.content) else text_of(turn.get(key), f"{key!r} of {name}")
        for key in ("name", "tool_call_id")
    )
    if role == CALL:
        called = _calls(content, name) or calls
        return Message("assistant", "", _train(turn, name), called, speaker, answered)
    return Message(_PLAIN[role], content, _train(turn, name), calls, speaker, answered)


_PLAIN: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}


def _role(value: Any, name: str, tags: Tags) -> str:
    word = text_of(value, f"{tags.role!r} of {name}")
    known = ROLE_NAMES if tags.role_names is None else tags.role_names
    role = known.get(word) or (known.get(word.strip().lower()) if tags.role_names is None else None)
    if role is None:
        raise RowError(
            f"{name} has the unknown role {word!r}{nearest(word, list(known))}; known: {', '.join(known)}"
        )
    return role


def _content(value: Any, name: str) -> str:
    if not isinstance(value, list):
        return text_of(value, name)
    texts = []
    for part in value:  # the OpenAI way: [{"type": "text", "text": …}]
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise RowError(f"{name} has a part that isn't text ({kind or described(part)})")
        texts.append(text_of(part.get("text"), name))
    return "".join(texts)


def _train(turn: Mapping[str, Any], name: str) -> bool | None:
    train = turn.get("train")
    if train is None and turn.get("weight") in (0, 1):  # the OpenAI way
        return bool(turn["weight"])
    if train is None and turn.get("weight") is not None:
        raise RowError(f"'weight' of {name} is {turn['weight']!r}, not 0 or 1")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"'train' of {name} is {described(train)}, not true or false")
    return train


def _calls(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls in the shape that chat templates expect; arguments as an object."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError(f"{name} should be a tool call as JSON, but its text isn't JSON") from None
    if isinstance(value, dict):
        value = [value]
    require_whole(value, f"the tool call of {name}")
    return tuple(_call(call, name) for call in list_of(value, f"the tool call of {name}"))


def _call(call: Any, name: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError(f"{name} has a tool call without the tool's name")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            raise RowError(f"{name} has a tool call whose arguments aren't JSON") from None
    if not isinstance(arguments, dict):
        raise RowError(f"{name} has a tool call whose arguments are {described(arguments)}, not an object")
    require_whole(arguments, f"the tool call of {name}")
    made: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if call.get("id") else {})
