"""The form of an answer: verse, and what stands in a certain place of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import SettingsError
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import IDEOGRAPH, without_thinking
from tunesmith.evaluate.metrics.overlap import exact_match


def verse_form(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the answer is one couplet in the form of the prompt's, and nothing else.

    The couplet on the prompt's last line gives the number of clauses and of Han characters in each; between
    them stands ， and at the end 。. Without one there, two clauses of 5 or two of 7 are asked for.
    """
    lengths = [_verse_lengths(prompt)] if _verse_lengths(prompt) else [(5, 5), (7, 7)]
    answer = without_thinking(prediction).strip()
    forms = ("，".join(f"{IDEOGRAPH}{{{n}}}" for n in form) + "。" for form in lengths)
    return float(any(re.fullmatch(form, answer) for form in forms))


def regex(pattern: str) -> Metric:
    """`regex:PATTERN`: 1 where the pattern occurs in the answer; with a group, where that is a reference.

    The last place where it occurs counts. Raises SettingsError for what isn't a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise SettingsError(
            f"regex:{pattern} isn't a regular expression: {error}.", fix="Correct the pattern."
        ) from error

    def score(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
        found = list(compiled.finditer(without_thinking(prediction)))
        if not compiled.groups:
            return float(bool(found))
        return exact_match(found[-1][1] or "", references) if found else 0.0

    what = "its group is a reference" if compiled.groups else "it occurs in the answer"
    asks = bool(compiled.groups)
    return Metric(f"regex:{pattern}", score, True, f"the regular expression: {what}", needs_references=asks)


def json_field(path: str) -> Metric:
    """`json:FIELD` (`json:address.city`, `json:items.0`): 1 where the answer's field is the reference's.

    The answer is a JSON text, alone or in a fenced block. A reference is one with the same field, or the
    value itself. Texts are compared as `exact_match` does, other values as JSON.
    """

    def score(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
        found = _field(without_thinking(prediction), path)
        return float(found is not _NOTHING and any(_same(found, _wanted(each, path)) for each in references))

    return Metric(f"json:{path}", score, True, f"the field {path} of the answer is the reference's")


def _verse_lengths(prompt: str) -> tuple[int, ...]:
    """Han characters in each clause of the verse on the last line; empty where there is no verse."""
    line = prompt.strip().rpartition("\n")[2].strip()
    if not re.fullmatch(rf"{IDEOGRAPH}+(?:[，、；？！]{IDEOGRAPH}+)+[。？！；，]?", line):
        return ()
    return tuple(len(clause) for clause in re.findall(rf"{IDEOGRAPH}+", line))


def _field(text: str, path: str) -> Any:
    blocks = [text, *re.findall(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)]
    for block in blocks:
        try:
            value = json.loads(block)
        except (ValueError, RecursionError):
            continue
        for step in path.split("."):
            if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            elif isinstance(value, dict) and step in value:
                value = value[step]
            else:
                return _NOTHING
        return value
    return _NOTHING


def _wanted(reference: str, path: str) -> Any:
    found = _field(reference, path)
    if found is not _NOTHING:
        return found
    try:
        return json.loads(reference)
    except (ValueError, RecursionError):
        return reference


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, str):
        return bool(exact_match(found, [wanted if isinstance(wanted, str) else json.dumps(wanted)]))
    # In Python True == 1; in JSON they are two values.
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


_NOTHING = object()

FORM = (
    Metric(
        "verse_form", verse_form, True, "one couplet in the form of the prompt's, nothing else",
        needs_references=False,
    ),
)  # fmt: skip
