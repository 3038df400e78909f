"""Which row each line of a file of predictions answers: by `id`; else by its prompt; else by their order.

Places say little: where lines are joined by them, the prompts or references of the two files mustn't differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tunesmith.data.read import RawRow
from tunesmith.errors import DataError
from tunesmith.evaluate.metrics.normalise import without_thinking
from tunesmith.evaluate.questions import Questions
from tunesmith.records import Conversation

PROMPTS = ("prompt", "question", "instruction", "input", "query")
"""Columns that hold what was asked, one of them or several together."""
TURNS = ("messages", "conversations")
SAME_PLACE = "Give lines and rows an `id`, or write the rows' own prompts into the lines."


class Line(NamedTuple):
    """A line of predictions: its `id` ("" without one), what it says was asked, and its references."""

    row: RawRow
    id: str
    asked: str
    truths: tuple[str, ...]


def line_of(row: RawRow, answer: str, truths: tuple[str, ...]) -> Line:
    """The line in a file's row whose answer stands under `answer`."""
    value: Mapping[str, Any] = row.value if isinstance(row.value, dict) else {}
    found = value.get("id")
    texts = [value[name] for name in PROMPTS if name != answer and isinstance(value.get(name), str)]
    for name in TURNS:
        turns = value.get(name)
        texts += [
            str(turn.get("content") or turn.get("value") or "")
            for turn in (turns if isinstance(turns, list) else [])
            if isinstance(turn, dict)
        ]
    return Line(row, "" if found is None else str(found), _plain(" ".join(texts)), truths)


def joined(lines: Sequence[Line], rows: Questions) -> tuple[list[str], str]:
    """The key of the row that each line answers, and the sentence that says how that is known.

    Lines may answer the rows beyond a limit, too. Raises DataError naming the lines or rows by which it can't
    be known.
    """
    path, all_rows = lines[0].row.origin.path, [*rows.conversations, *rows.rest]
    if twice := [key for key, count in Counter(row.key for row in all_rows).items() if count > 1]:
        raise DataError(
            f"{rows.path} has ids that come more than once: {', '.join(twice[:10])}.",
            fix="Give each row an `id` of its own, or none.",
        )
    if any(line.id for line in lines):
        _check_ids(lines, all_rows, path)
        return [line.id for line in lines], ""
    for among in (rows.conversations, all_rows):
        keys = _by_prompt(lines, among)
        if keys and None not in keys:
            known = [key for key in keys if key is not None]
            return known, f"{path} is joined to {rows.path} by prompts, as no line has an `id`."
    _check_strange(lines, keys, len(all_rows), path, rows.path)
    if len(lines) not in (len(rows.conversations), len(all_rows)):
        less = f", or take as many rows: --limit {len(lines)}" if len(lines) < len(rows.conversations) else ""
        raise DataError(
            f"{path} has {len(lines)} lines without an `id`, {rows.path} {len(rows.conversations)} rows: "
            "which belong together isn't known.",
            fix=f"Give lines and rows an `id`{less}.",
        )
    answered = all_rows[: len(lines)]
    _check_places(zip(lines, answered, strict=True), path, rows.path)
    how = f"{path} is joined to {rows.path} by the order of lines, as no line has an `id`."
    return [row.key for row in answered], how


def _check_ids(lines: Sequence[Line], rows: Sequence[Conversation], path: str) -> None:
    """Every line has one; where rows have none of their own, it is a place and may be a wrong one."""
    if without := [str(line.row.origin) for line in lines if not line.id]:
        raise DataError(
            f"{len(without)} of {len(lines)} lines of {path} have no `id`, the others do.",
            details=without,
            fix="Give all lines an `id`, or none.",
        )
    places = {row.key: row for row in rows if not row.id}
    pairs = ((line, places[line.id]) for line in lines if line.id in places)
    _check_places(pairs, path, rows[0].origin.path)


def _by_prompt(lines: Sequence[Line], rows: Sequence[Conversation]) -> list[str | None]:
    """The key of the row that asks what each line says was asked, None where there is none; empty where two
    rows or two lines ask the same.
    """
    known = {text: row.key for row in rows for text in _questions(row)}
    keys = [known.get(line.asked) for line in lines]
    found = [key for key in keys if key is not None]
    alike = len({_questions(row)[0] for row in rows}) < len(rows) or len(found) != len({*found})
    return [] if alike or not found else keys


def _check_strange(
    lines: Sequence[Line], keys: Sequence[str | None], count: int, path: str, data: str
) -> None:
    """Raise DataError naming the lines that answer no row, where all `count` rows have theirs."""
    strange = [str(line.row.origin) for line, key in zip(lines, keys, strict=False) if key is None]
    if strange and len(keys) - len(strange) == count:
        raise DataError(
            f"{len(strange)} of {len(lines)} lines of {path} answer no row of {data}.",
            details=strange,
            fix="Leave those lines out, or add their rows.",
        )


def _check_places(pairs: Iterable[tuple[Line, Conversation]], path: str, data: str) -> None:
    """Raise DataError naming every line that says something else than the row in its place."""
    bad = [said for line, row in pairs if (said := _difference(line, row))]
    if bad:
        raise DataError(
            f"Lines of {path} aren't about the rows of {data} in the same places.",
            details=bad,
            fix=SAME_PLACE,
        )


def _difference(line: Line, row: Conversation) -> str | None:
    """What line and row say differently. A prompt may have a template or earlier turns around it."""
    turns = [_plain(turn.content) for turn in row.prompt.messages if turn.role == "user"]
    if line.asked:
        whole = _plain(" ".join(turn.content for turn in row.prompt.messages))
        if all(turn in line.asked for turn in turns):
            return None  # references may be cut, or stand in a template
        if line.asked not in whole:
            return f"{line.row.origin}: it answers {line.asked[:40]!r}, the row asks {turns[-1][:40]!r}"
    truths, references = (
        [_plain(without_thinking(text)) for text in texts] for texts in (line.truths, row.references)
    )
    alike = any(one.startswith(other) or other.startswith(one) for one in truths for other in references)
    if truths and references and not alike:
        return f"{line.row.origin}: its reference is {truths[0][:40]!r}, the row's {references[0][:40]!r}"
    return None


def _questions(row: Conversation) -> list[str]:
    """How a line may write what a row asks: its user's words, or all turns with their roles."""
    asked = " ".join(turn.content for turn in row.prompt.messages if turn.role == "user")
    every = " ".join(turn.content for turn in row.prompt.messages)
    return [_plain(asked), _plain(row.question), _plain(every)]


def _plain(text: str) -> str:
    return " ".join(text.split())
