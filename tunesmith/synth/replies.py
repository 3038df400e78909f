"""Replies of the maker and the judge, read strictly: a guess at what was meant would be a row of ours.

Let through are a thinking part before the JSON and one code fence around it; of the maker also a list of rows
without the object around it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tunesmith.synth.config import SCORES
from tunesmith.synth.likeness import plain

LEAST_QUOTE = 4  # letters: a shorter one is in any passage
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class Malformed(ValueError):
    """A reply that can't be read, and why."""


def read_rows(text: str) -> list[tuple[str, str]]:
    """`{"rows": [{"question": …, "answer": …}]}` -> pairs of texts, which may be empty. Raises Malformed."""
    value = _json(text)
    rows = value.get("rows") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise Malformed('it has no list "rows"')
    found = []
    for row in rows:
        if not isinstance(row, dict) or not {"question", "answer"} <= set(row):
            raise Malformed('a row has no "question" and "answer"')
        question, answer = row["question"], row["answer"]
        if not isinstance(question, str) or not isinstance(answer, str):
            raise Malformed('"question" and "answer" have to be texts')
        found.append((question.strip(), answer.strip()))
    return found


def read_verdict(text: str) -> dict[str, Any]:
    """`{"reason", "quote", "grounded", "complete", "clear"}`, scores from 1 to 5. Raises Malformed."""
    value = _json(text)
    keys = ("reason", "quote", *SCORES)
    if not isinstance(value, dict) or set(value) != set(keys):
        raise Malformed(f"it has to be one JSON object with the keys {', '.join(keys)}")
    for name in ("reason", "quote"):
        if not isinstance(value[name], str):
            raise Malformed(f'"{name}" has to be a text')
    for name in SCORES:
        if type(value[name]) is not int or not 1 <= value[name] <= 5:
            raise Malformed(f'"{name}" has to be a whole number from 1 to 5')
    return value


def stands_in(quote: str, passage: str) -> bool:
    """Whether a quote is in the passage, whatever its white space, width, case and punctuation."""
    letters = plain(quote)
    return len(letters) >= LEAST_QUOTE and letters in plain(passage)


def rows_schema(count: int) -> dict[str, Any]:
    """The JSON schema of the maker's reply."""
    row = _schema(
        {"question": {"type": "string", "maxLength": 200}, "answer": {"type": "string", "maxLength": 600}}
    )
    return _schema({"rows": {"type": "array", "items": row, "maxItems": count}})


def verdict_schema() -> dict[str, Any]:
    """The JSON schema of the judge's reply."""
    score = {"type": "integer", "minimum": 1, "maximum": 5}
    texts = {"reason": {"type": "string", "maxLength": 160}, "quote": {"type": "string", "maxLength": 200}}
    return _schema({**texts, **dict.fromkeys(SCORES, score)})


def _json(text: str) -> Any:
    inner = _THOUGHT.sub("", text).strip()
    if fenced := _FENCE.fullmatch(inner):
        inner = fenced[1]
    try:
        value = json.loads(inner)
        # "\ud83d" alone is JSON, and half a letter: no file takes it.
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise Malformed("it isn't JSON" if inner else "it is empty") from None


def _schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
