"""A judge's reply, read strictly: one JSON object of exactly the keys and values that were asked for.

Let through are a thinking part before it and one code fence around it; anything else is malformed. A guess at
what was meant would be a vote of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BETTER = ("1", "2", "tie")
LOWEST, HIGHEST = 1, 5
SHORT = 120  # characters of a reason where decoding is guided, so that the JSON ends in time

Verdict = dict[str, Any]
Parse = Callable[[str], Verdict]


class Malformed(ValueError):
    """A reply that can't be read, and why."""


def read_pair(text: str) -> Verdict:
    """{"reason": text, "better": "1" | "2" | "tie"}. Raises Malformed."""
    value = _object(text, ("reason", "better"))
    if value["better"] not in BETTER:
        raise Malformed(f'"better" is {_shown(value["better"])}, not "1", "2" or "tie"')
    _check_reason(value["reason"])
    return value


def read_scores(names: Sequence[str]) -> Parse:
    """A reader of {name: {"reason": text, "score": 1 to 5}, …} for these criteria."""

    def read(text: str) -> Verdict:
        value = _object(text, names)
        for name in names:
            one = _exactly(value[name], ("reason", "score"), f"{_shown(name)} holds")
            _check_reason(one["reason"])
            score = one["score"]
            if isinstance(score, bool) or not isinstance(score, int) or not LOWEST <= score <= HIGHEST:
                raise Malformed(
                    f"the score of {_shown(name)} is {_shown(score)}, not a whole number from 1 to 5"
                )
        return value

    return read


def pair_schema() -> dict[str, Any]:
    """The JSON schema of a verdict on two answers."""
    return _schema({"reason": _REASON, "better": {"enum": list(BETTER)}})


def scores_schema(names: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of scores by these criteria."""
    score = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}
    return _schema({name: _schema({"reason": _REASON, "score": score}) for name in names})


_REASON = {"type": "string", "maxLength": SHORT}
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


def _schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _object(text: str, keys: Sequence[str]) -> Verdict:
    inner = _THOUGHT.sub("", text).strip()
    if fenced := _FENCE.fullmatch(inner):
        inner = fenced[1]
    try:
        value = json.loads(inner, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed("it isn't a JSON object") from None
    return _exactly(value, keys, "it has")


def _exactly(value: Any, keys: Sequence[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} {_shown(value)}, not a JSON object")
    if set(value) != set(keys):
        raise Malformed(f"{what} the keys {_shown(list(value))} instead of {_shown(list(keys))}")
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Malformed("a key comes twice")
    return dict(pairs)


def _check_reason(value: Any) -> None:
    if not isinstance(value, str):
        raise Malformed(f'"reason" is {_shown(value)}, not a text')


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + " …"
