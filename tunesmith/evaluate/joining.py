"""Which row each line of a file of predictions answers: by `id`; else by its prompt; else by their order.

Order is the weakest: where prompts or references of the two files say otherwise, nothing is joined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.read import RawRow
from tunesmith.errors import DataError
from tunesmith.evaluate.questions import Questions
from tunesmith.records import Conversation

Line = Mapping[str, Any]


def ids(lines: Sequence[RawRow]) -> list[str]:
    """Each line's own `id`, else its place."""
    return [str(value.get("id", at)) for at, value in enumerate(_values(lines))]


def joined(
    lines: Sequence[RawRow], rows: Questions, prompt: str, truths: Sequence[str]
) -> tuple[list[str], str]:
    """The key of the row that each line answers, and the sentence that says how that is known.

    `prompt` and `truths` are the columns of the lines that hold prompts and references. Lines may answer the
    rows beyond a limit, too. Raises DataError where it can't be known.
    """
    values = _values(lines)
    if any("id" in value for value in values):
        return ids(lines), ""
    path, all_rows = lines[0].origin.path, [*rows.conversations, *rows.rest]
    by_prompt = _by_prompt(values, all_rows, prompt)
    if by_prompt is not None:
        return by_prompt, f"{path} is joined to {rows.path} by prompts, as no line has an `id`."
    if len(values) not in (len(rows.conversations), len(all_rows)):
        less = len(values) < len(rows.conversations)
        raise DataError(
            f"{path} has {len(values)} lines without an `id`, {rows.path} {len(rows.conversations)} rows: "
            "which belong together isn't known.",
            fix="Give lines and rows an `id`"
            + (f", or take as many rows: --limit {len(values)}." if less else "."),
        )
    answered = all_rows[: len(values)]
    pairs = zip(lines, values, answered, strict=True)
    bad = [said for line, value, row in pairs if (said := _contradiction(line, value, row, prompt, truths))]
    if bad:
        raise DataError(
            f"{path} and {rows.path} aren't in the same order, and no line has an `id`.",
            details=bad,
            fix="Give lines and rows an `id`, or write the rows' own prompts into the lines.",
        )
    keys = [row.key for row in answered]
    return keys, f"{path} is joined to {rows.path} by the order of lines, as no line has an `id`."


def _values(lines: Sequence[RawRow]) -> list[Line]:
    return [line.value if isinstance(line.value, dict) else {} for line in lines]


def _by_prompt(values: Sequence[Line], rows: Sequence[Conversation], prompt: str) -> list[str] | None:
    """The keys of the rows that ask what the lines say they answer; None unless it is so for each, once."""
    counts = Counter(_plain(row.last_asked) for row in rows)
    known = {_plain(row.last_asked): row.key for row in rows if counts[_plain(row.last_asked)] == 1}
    keys = [known.get(_plain(value.get(prompt))) for value in values]
    found = [key for key in keys if key is not None]
    return found if len(found) == len(values) == len(set(found)) else None


def _contradiction(
    line: RawRow, value: Line, row: Conversation, prompt: str, truths: Sequence[str]
) -> str | None:
    """What line and row say differently. A prompt may have a template or earlier turns around it."""
    asked, said = _plain(row.last_asked), _plain(value.get(prompt))
    if said and asked not in said and said not in asked:
        return f"{line.origin}: it answers {said[:40]!r}, the row there asks {asked[:40]!r}"
    truth = next((value[name] for name in truths if isinstance(value.get(name), str)), None)
    if truth is not None and row.references and _plain(truth) not in map(_plain, row.references):
        return f"{line.origin}: its reference is {truth[:40]!r}, the row's {row.references[0][:40]!r}"
    return None


def _plain(text: object) -> str:
    return " ".join(text.split()) if isinstance(text, str) else ""
