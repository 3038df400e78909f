"""Rows of a JSON list or of JSON lines, each with its true line; every fault with line, column and cause.

A list is decoded element by element, so that each row keeps its line. A fault in a line of JSONL costs that
row only; a fault in a list costs the file, because nobody can tell what it swallowed.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from tunesmith.data.row_format import half_character
from tunesmith.errors import DataError


class Found(NamedTuple):
    """A row as it stands in the file: its 1-based line, and its value or the reason why it has none."""

    line: int
    value: Any
    reason: str = ""


# Columns of one row that are lists of objects themselves; any other such list holds the rows.
ROW_LISTS = {"messages", "conversations", "history", "tools", "prompt", "completion", "chosen", "rejected"}
_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\n\r]*")


def read_json(text: str, path: str, *, lines_expected: bool) -> tuple[str, list[Found]]:
    """("json" or "jsonl", the rows); a lone object is a row where `lines_expected`, else it may hold them.

    Raises DataError where the file as a whole isn't a list of rows.
    """
    start = _skip(text, 0)
    if text.startswith("[", start):
        return "json", _array(text, start, path)
    whole = _decode(text, start)
    if isinstance(whole, _Fault):
        lines = _lines(text)
        if len(lines) > 1 and all(row.reason for row in lines):
            raise _not_json(path, [f"{path}:{whole.place(text)}: {whole.cause}"])
        return "jsonl", lines
    if _skip(text, whole.end) == len(text):
        line = text.count("\n", 0, start) + 1
        if lines_expected:
            return "jsonl", [Found(line, whole.value, whole.reason)]
        return "json", [_single(whole, line, path)]
    if "\n" in text[start : whole.end]:
        line, column = _place(text, whole.end)
        raise _not_json(
            path, [f"{path}:{line}:{column}: the first object ends here and another follows, without a list"]
        )
    return "jsonl", _lines(text)


def read_object(text: str, path: str) -> dict[str, Any]:
    """The one object of a JSON file. Raises DataError with line, column and cause."""
    whole = _decode(text, _skip(text, 0))
    if isinstance(whole, _Fault):
        raise _not_json(path, [f"{path}:{whole.place(text)}: {whole.cause}"], one_object=True)
    if (rest := _skip(text, whole.end)) < len(text):
        raise _not_json(
            path, [f"{path}:{_at(text, rest)}: there is more after the object's end"], one_object=True
        )
    if whole.reason:
        raise _not_json(path, [f"{path}: {whole.reason}"], one_object=True)
    if not isinstance(whole.value, dict):
        raise _not_json(path, [f"{path}: it isn't one object"], one_object=True)
    return whole.value


class _Decoded(NamedTuple):
    value: Any
    end: int
    reason: str


class _Fault(NamedTuple):
    at: int
    cause: str

    def place(self, text: str) -> str:
        return "{}:{}".format(*_place(text, self.at))


def _decode(text: str, start: int) -> _Decoded | _Fault:
    """One JSON value. NaN and doubled keys are well-formed for Python, so they are a reason, not a fault."""
    reasons: list[str] = []

    def constant(word: str) -> None:
        reasons.append(f"{word} isn't JSON; write null or a text")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) < len(items):
            keys = [key for key, _ in items]
            doubled = sorted({key for key in keys if keys.count(key) > 1})
            reasons.append(f"the key {doubled[0]!r} is there twice in one object")
        return value

    try:
        value, end = json.JSONDecoder(parse_constant=constant, object_pairs_hook=pairs).raw_decode(
            text, start
        )
    except json.JSONDecodeError as error:
        return _Fault(error.pos, _cause(error.msg, text, error.pos))
    except RecursionError:
        return _Fault(start, "it is nested too deeply")
    except ValueError as error:  # a whole number of more digits than Python converts
        return _Fault(start, str(error).split(";")[0])
    if _HALF_ESCAPED.search(text, start, end):
        reasons += _halves(value)
    return _Decoded(value, end, "; ".join(dict.fromkeys(reasons)))


def _halves(value: Any) -> list[str]:
    """The first place where a text isn't whole. Nothing else than an escape in JSON can bring half of one."""
    if not isinstance(value, dict):
        return [f"the row holds {half}"] if (half := half_character(value)) else []
    if half := half_character("".join(value)):
        return [f"a column's name holds {half}"]
    return [f"{key!r} holds {half}" for key, inner in value.items() if (half := half_character(inner))][:1]


def _array(text: str, start: int, path: str) -> list[Found]:
    rows: list[Found] = []
    faults: list[str] = []
    line, counted = 1, 0
    pos = _skip(text, start + 1)
    comma = False
    while True:
        number = len(rows) + 1
        if pos >= len(text):
            faults.append(
                f"{path}:{_at(text, pos)}: the file ends before the list does (no ] after row {number - 1})"
            )
            break
        if text[pos] == "]":
            if comma:
                faults.append(f"{path}:{_at(text, pos)}: a comma too many after row {number - 1}")
            if (rest := _skip(text, pos + 1)) < len(text):
                faults.append(f"{path}:{_at(text, rest)}: there is more after the end of the list")
            break
        if text[pos] == ",":
            faults.append(f"{path}:{_at(text, pos)}: a comma too many before row {number}")
            pos = _skip(text, pos + 1)
            continue
        line, counted = line + text.count("\n", counted, pos), pos
        element = _decode(text, pos)
        if isinstance(element, _Fault):
            faults.append(f"{path}:{element.place(text)}: {element.cause} (row {number}, from line {line})")
            next_row = _next_row(text, pos, element.at)
            if next_row is None and _skip(text, element.at) == len(text):
                break
            if next_row is None:
                faults.append(f"{path}: the rows after row {number} haven't been checked yet")
                break
            rows.append(Found(line, None, element.cause))
            pos, comma = next_row, False
            continue
        rows.append(Found(line, element.value, element.reason))
        pos = _skip(text, element.end)
        comma = text.startswith(",", pos)
        if comma:
            pos = _skip(text, pos + 1)
        elif pos < len(text) and text[pos] != "]":
            faults.append(
                f"{path}:{_at(text, element.end)}: no comma between row {number} and row {number + 1}"
            )
            if text[pos] not in '{["':
                faults.append(f"{path}: the rows after row {number} haven't been checked yet")
                break
    if faults:
        raise _not_json(path, faults)
    return rows


def _next_row(text: str, row: int, fault: int) -> int | None:
    """Where a row starts again after a fault: a brace on its own line, indented like the faulty row's."""
    indent = text[text.rfind("\n", 0, row) + 1 : row]
    if indent.strip():
        return None
    found = re.compile(rf"\n{indent}(?=\{{)").search(text, fault)
    return found.end() if found else None


def _lines(text: str) -> list[Found]:
    """One row a line. Only \\n ends a line: U+2028 and others may stand inside a text."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        start = _skip(line, 0)
        if start == len(line):
            continue
        row = _decode(line, start)
        if isinstance(row, _Fault):
            rows.append(Found(number, None, f"column {row.at + 1}: {row.cause}"))
        elif (rest := _skip(line, row.end)) < len(line):
            more = (
                "a comma after the row; JSONL has none"
                if line[rest:].strip() == ","
                else "more after the row's end"
            )
            rows.append(Found(number, None, f"column {rest + 1}: {more}"))
        else:
            rows.append(Found(number, row.value, row.reason))
    return rows


def _single(row: _Decoded, line: int, path: str) -> Found:
    value = row.value
    if not isinstance(value, dict):
        raise _not_json(path, [f"it holds a single {type(value).__name__}"])
    rows = [
        key
        for key, inner in value.items()
        if isinstance(inner, list)
        and key not in ROW_LISTS
        and inner
        and all(isinstance(item, dict) for item in inner)
    ]
    if rows and not ROW_LISTS & value.keys():
        raise DataError(
            f"{path} holds one object, not a list of rows; the rows seem to be in its {rows[0]!r}.",
            fix=f"Save that list alone, for example with: jq '.{rows[0]}' {path} > rows.json",
        )
    if (
        len(value) > 0
        and not ROW_LISTS & value.keys()
        and all(isinstance(inner, list | dict) for inner in value.values())
    ):
        raise DataError(
            f"{path} holds one object with columns or numbered rows inside, not a list of rows.",
            fix='Save rows; with pandas: df.to_json(file, orient="records", force_ascii=False).',
        )
    return Found(line, value, row.reason)


def _cause(message: str, text: str, at: int) -> str:
    """What is wrong, in words of a person who edits the file."""
    at = _skip(text, at)
    here = text[at : at + 5]
    if not here:
        return "it ends in the middle of a row"
    if here[0] == "'":
        return "single quotes; JSON wants double quotes"
    for word, json_word in (("None", "null"), ("True", "true"), ("False", "false")):
        if here.startswith(word):
            return f"{word} isn't JSON; write {json_word}"
    if message.startswith(("Expecting property name", "Illegal trailing comma")):
        return (
            "a comma too many before }"
            if here[0] == "}"
            else "a column name in double quotes should stand here"
        )
    for beginning, cause in _CAUSES.items():
        if message.startswith(beginning):
            return cause
    return message[0].lower() + message[1:]


_CAUSES = {
    "Expecting ',' delimiter": "a comma is missing (or a quote in the text before isn't written \\\")",
    "Expecting ':' delimiter": "a colon is missing here",
    "Expecting value": "a value should stand here",
    "Unterminated string": "the text that begins here has no closing quote",
    "Invalid control character": "a line break or tab inside a text; write \\n or \\t",
    "Invalid \\escape": "a lone backslash inside a text; write \\\\",
    "Invalid \\uXXXX": "\\u needs four hexadecimal digits",
}


def _not_json(path: str, faults: list[str], *, one_object: bool = False) -> DataError:
    rows = "Write one list of objects, [{…}, {…}], or one object a line (JSONL)."
    return DataError(
        f"{path} isn't valid JSON.", details=faults, fix="Write one object, {…}." if one_object else rows
    )


def _skip(text: str, pos: int) -> int:
    match = _BLANK.match(text, pos)
    return match.end() if match else pos


def _place(text: str, pos: int) -> tuple[int, int]:
    return text.count("\n", 0, pos) + 1, pos - text.rfind("\n", 0, pos)


def _at(text: str, pos: int) -> str:
    return "{}:{}".format(*_place(text, min(pos, len(text))))
