"""Replies of the maker and the judge, read strictly: a guess at what was meant would be a row of ours.

Let through are a thinking part before the JSON, a code fence or sentences around it; of the maker also a list
of rows without the object around it, of the judge scores as texts ("5").
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
    """A reply that can't be read, and why, in the languages of the prompts."""

    def __init__(self, problem: str, chinese: str) -> None:
        super().__init__(problem)
        self.problem: dict[str, str] = {"en": problem, "zh": chinese}


def read_rows(text: str) -> list[tuple[str, str]]:
    """`{"rows": [{"question": …, "answer": …}]}` -> pairs of texts, which may be empty. Raises Malformed."""
    value = _json(text)
    rows = value.get("rows") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise Malformed('it has no list "rows"', '没有列表 "rows"')
    found = []
    for row in rows:
        if not isinstance(row, dict) or not {"question", "answer"} <= set(row):
            raise Malformed('a row has no "question" and "answer"', '有一项缺少 "question" 或 "answer"')
        question, answer = row["question"], row["answer"]
        if not isinstance(question, str) or not isinstance(answer, str):
            raise Malformed('"question" and "answer" have to be texts', '"question" 和 "answer" 必须是文本')
        found.append((question.strip(), answer.strip()))
    return found


def read_verdict(text: str) -> dict[str, Any]:
    """`{"reason", "quote", "grounded", "complete", "clear"}`, scores from 1 to 5. Raises Malformed."""
    value = _json(text)
    keys = ("reason", "quote", *SCORES)
    if not isinstance(value, dict) or set(value) != set(keys):
        names = ", ".join(keys)
        raise Malformed(
            f"it has to be one JSON object with the keys {names}", f"必须是一个含有 {names} 的 JSON 对象"
        )
    for name in ("reason", "quote"):
        if not isinstance(value[name], str):
            raise Malformed(f'"{name}" has to be a text', f'"{name}" 必须是文本')
    for name in SCORES:
        if isinstance(value[name], str) and value[name].strip() in ("1", "2", "3", "4", "5"):
            value[name] = int(value[name])
        if type(value[name]) is not int or not 1 <= value[name] <= 5:
            raise Malformed(
                f'"{name}" has to be a whole number from 1 to 5', f'"{name}" 必须是 1 到 5 的整数'
            )
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
    for text in (inner, *_inside(inner)):
        try:
            value = json.loads(text)
            # "\ud83d" alone is JSON, and half a letter: no file takes it.
            return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
    raise Malformed("it isn't JSON", "不是 JSON") if inner else Malformed("it is empty", "内容为空")


def _inside(text: str) -> list[str]:
    """From the first bracket of a kind to its last, the outer kind first; two objects give no JSON."""
    found = [(text.find(begin), text.rfind(end) + 1) for begin, end in ("{}", "[]")]
    return [text[begin:end] for begin, end in sorted(found) if 0 <= begin < end]


def _schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
