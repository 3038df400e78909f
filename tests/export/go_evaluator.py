"""As much of Go's text/template as our templates for Ollama use: every action trims what is before it.

literals, .Content, $last := / = "x", range .Messages, if/else if eq|ne (.Role | $last) "x", else, end
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_ACTION = re.compile(r'\{\{- ((?:"(?:[^"\\]|\\.)*"|[^"}])*?) ?\}\}', re.DOTALL)
_STRING = r'"(?:[^"\\]|\\.)*"'


def evaluate(template: str, messages: Sequence[tuple[str, str]]) -> str:
    """The text that a template makes of (role, content)."""
    actions, end = [], 0
    for found in _ACTION.finditer(template):
        assert not template[end : found.start()].strip(), f"text outside of actions: {template[end:]!r:.80}"
        actions.append(found[1])
        end = found.end()
    assert not template[end:].strip(), f"not an action: {template[end:]!r:.80}"
    state = {"$last": ""}
    out: list[str] = []
    assert _run(actions, 0, state, None, messages, out, live=True) == len(actions)
    return "".join(out)


def _run(
    actions: Sequence[str], at: int, state: dict[str, str], message: tuple[str, str] | None,
    messages: Sequence[tuple[str, str]], out: list[str], *, live: bool,
) -> int:  # fmt: skip
    """Run up to the `end` or `else` that closes this block; returns its place."""
    while at < len(actions):
        action = actions[at]
        if action == "end" or action.startswith("else"):
            return at
        at += 1
        if action == "range .Messages":
            body = at
            for one in messages:
                at = _run(actions, body, state, one, messages, out, live=live)
            assert messages, "a chat has messages"
            at += 1
        elif action.startswith("if "):
            at = _branches(actions, at - 1, state, message, messages, out, live=live)
        elif live:
            _simple(action, state, message, out)
    return at


def _branches(
    actions: Sequence[str], at: int, state: dict[str, str], message: tuple[str, str] | None,
    messages: Sequence[tuple[str, str]], out: list[str], *, live: bool,
) -> int:  # fmt: skip
    open_ = live
    while (action := actions[at]) != "end":
        test = action.removeprefix("else").removeprefix(" ").removeprefix("if ")
        taken = open_ and (test == "" or _holds(test, state, message))
        at = _run(actions, at + 1, state, message, messages, out, live=taken)
        open_ = open_ and not taken
    return at + 1


def _holds(test: str, state: dict[str, str], message: tuple[str, str] | None) -> bool:
    found = re.fullmatch(rf"(eq|ne) (\.Role|\$last) ({_STRING})", test)
    assert found, test
    assert message is not None or found[2] != ".Role"
    value = message[0] if found[2] == ".Role" and message else state["$last"]
    return (value == json.loads(found[3])) == (found[1] == "eq")


def _simple(action: str, state: dict[str, str], message: tuple[str, str] | None, out: list[str]) -> None:
    if action == ".Content":
        assert message is not None
        out.append(message[1])
    elif assigned := re.fullmatch(rf"\$last :?= ({_STRING})", action):
        state["$last"] = json.loads(assigned[1])
    else:
        assert re.fullmatch(_STRING, action), action
        out.append(json.loads(action))
