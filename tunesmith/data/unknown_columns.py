"""The error for rows that no format fits: the columns seen, and what to rename or name."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.data.dataset_info import FILE, entries_beside
from tunesmith.data.read import RawRow
from tunesmith.data.row_format import described
from tunesmith.errors import DataError

FORMATS = {
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "preference": ("prompt", "chosen", "rejected"),
    "text": ("text",),
}
_KNOWN = (
    "alpaca: instruction, input, output, system, history",
    "sharegpt: conversations = [{from, value}, …]",
    "messages: messages = [{role, content}, …]",
    "prompt-completion: prompt, completion",
    "preference: prompt, chosen, rejected",
    "labelled: one of these and label = true or false",
    "text: text",
)
# Other people's names for the columns of alpaca, and for lists of turns.
_PROMPT = (
    "question", "query", "prompt", "ask", "q", "problem", "user", "human", "title", "input",
    "问题", "提问", "指令", "問題",
)  # fmt: skip
_ANSWER = (
    "answer", "response", "completion", "reply", "a", "solution", "assistant", "target",
    "回答", "答案", "输出", "回复", "輸出",
)  # fmt: skip
_TURNS = ("dialogue", "dialog", "chat", "conversation", "turns", "message", "chats", "对话", "對話")
_TEXT = ("content", "document", "body", "文本", "正文", "内容", "內容")


def nothing_fits(rows: Sequence[RawRow], counts: Mapping[str, int]) -> DataError:
    """What the rows have, what would fit and what to do. `counts`: how many rows have each format."""
    path = rows[0].origin.path if rows else "the file"
    if len(counts) > 1 or (counts and sum(counts.values()) * 2 > len(rows)):
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        return DataError(
            f"{path}: the rows are of several formats, none of which more than half of them have ({found}).",
            fix="Put the rows of each format in a file of their own.",
        )
    columns = _columns(rows)
    details = [
        f"column {name!r} in {_share(n, len(rows))}: {_sample(rows, name)}" for name, n in columns.items()
    ]
    if counts:
        name, count = next(iter(counts.items()))
        details.append(f"only {count} of {len(rows)} rows fit {name}")
    details += [f"known: {known}" for known in _KNOWN]
    return DataError(f"{path}: no row format fits.", details=details, fix=_advice(path, list(columns)))


def _advice(path: str, columns: Sequence[str]) -> str:
    by_lower = {column.strip().lower(): column for column in columns}
    prompt = "instruction" if "instruction" in columns else _first(by_lower, ("instruction", *_PROMPT))
    answer = "output" if "output" in columns else _first(by_lower, ("output", *_ANSWER))
    if prompt and answer and prompt != answer:
        return _rename(path, {prompt: "instruction", answer: "output"})
    # The format that most of the columns speak for comes first.
    for name, required in sorted(FORMATS.items(), key=lambda item: -len(set(item[1]) & set(columns))):
        missing = [column for column in required if column not in columns]
        near = {column: difflib.get_close_matches(column, by_lower, n=1, cutoff=0.75) for column in missing}
        if missing and all(near.values()):
            return _rename(path, {by_lower[found[0]]: column for column, found in near.items()})
        if 0 < len(missing) < len(required):
            unanswered = " (rows without an answer can be asked, not trained on)"
            what = f"For {name} the column {' and '.join(map(repr, missing))} is missing"
            return what + (unanswered if {"output", "completion"} & set(missing) else "") + "."
    if "messages" in columns or "conversations" in columns:
        return "Each turn must be an object with role and content (or from and value)."
    if turns := _first(by_lower, _TURNS):
        return _rename(path, {turns: "messages"})
    if text := _first(by_lower, _TEXT):
        return _rename(path, {text: "text"})
    header = " Is the header line missing?" if path.lower().endswith((".csv", ".tsv")) else ""
    return f"Rename the columns to those of a known format{_or_entry(path)}.{header}"


def _rename(path: str, names: Mapping[str, str]) -> str:
    names = {old: new for old, new in names.items() if old != new}
    old, new = " and ".join(names), " and ".join(names.values())
    advice = f"You have {old}; rename {'them' if len(names) > 1 else 'it'} to {new}"
    parts = {"instruction": "prompt", "output": "response"}
    if set(names.values()) <= parts.keys():
        columns = {parts[to]: was for was, to in names.items()}
        advice += _or_name_them(Path(path), columns)
    return advice + "."


def _or_entry(path: str) -> str:
    """The same for columns that don't say what they are."""
    return _or_name_them(Path(path), {"prompt": "<question>", "response": "<answer>"})


def _or_name_them(file: Path, columns: Mapping[str, str]) -> str:
    """What to write into the dataset_info.json beside the file, and what to type then."""
    info, entries = file.parent / FILE, entries_beside(file)
    for name, entry in entries.items():
        if isinstance(entry, Mapping) and entry.get("file_name") == file.name:
            return f". {info} has an entry for this file: give {file.parent / name} instead of {file}"
    name = file.stem if file.stem not in entries else f"{file.stem}_rows"
    entry = json.dumps({name: {"file_name": file.name, "columns": columns}}, ensure_ascii=False)
    how = f"add {entry[1:-1]} to {info}" if entries else f"write {entry} into {info}"
    return f"; or {how} and give {file.parent / name} instead of {file}"


def _first(by_lower: Mapping[str, str], names: Sequence[str]) -> str:
    return next((by_lower[name] for name in names if name in by_lower), "")


def _columns(rows: Sequence[RawRow]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.value.keys() if isinstance(row.value, dict) else ["(plain text)"])
    return counts


def _sample(rows: Sequence[RawRow], name: str) -> str:
    values = (row.value.get(name) for row in rows if isinstance(row.value, dict))
    value = next((value for value in values if value is not None), None)
    if isinstance(value, str):
        shown = value if len(value) <= 30 else value[:30] + "…"
        return json.dumps(shown, ensure_ascii=False)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"a list of objects with {', '.join(value[0])}"
    return described(value)


def _share(count: int, rows: int) -> str:
    return "every row" if count == rows else f"{count} of {rows} rows"
