"""General questions that training on something else shouldn't cost: 30 Chinese, 30 English, scored by rule.

They stand in general.jsonl and are this project's own. `exact`: the whole answer is asked for; `instead`:
what a wrong answer would name first. Imports no torch.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import HAN, is_empty, tokens, without_thinking
from tunesmith.evaluate.metrics.overlap import exact_match
from tunesmith.records import Conversation, Message, Origin

NAME = "general"
"""What `--data` takes for them; a file of this name wins."""
NEW_TOKENS = 32
"""Of an answer: what is asked for is a word, and sixty answers shouldn't take longer than the rows do."""
READ_TOKENS = 40  # of an answer that are read
OTHER_NUMBERS = 2  # that an answer may name beside the right one: steps on the way
OTHER_ANSWERS = 1  # of other questions
REPEATED = 5  # times that a word may come, unless it makes less than half of the answer
LISTED = 5  # short pieces between commas that make a list of guesses


def is_general(data: str) -> bool:
    """Whether `--data` means these questions."""
    return data == NAME and not Path(data).exists()


def are_general(rows: Sequence[Conversation]) -> bool:
    """Whether rows are these questions."""
    return bool(rows) and rows[0].origin.path == NAME and "kind" in rows[0].meta.get("columns", {})


def general_rows() -> list[Conversation]:
    """The questions with all accepted answers as references; `meta["columns"]` has language and kind."""
    return [
        Conversation(
            (Message("user", item["question"]),),
            Origin(NAME, number + 1, number),
            item["id"],
            references=tuple(item["answers"]),
            meta={"columns": item, "number": number},
        )
        for number, item in enumerate(_items().values())
    ]


def right(prediction: str, references: Sequence[str], prompt: str = "") -> float:
    """1 if the answer names a reference in its first 40 words (Han characters) and is no list of guesses.

    A list: more than two other numbers, more than one answer to another question, or five short pieces
    between commas. Nor does an answer count half of which is one word again and again. `prompt` finds the
    question's own rules.
    """
    item = _items().get(prompt, {})
    if is_empty(prediction):
        return 0.0
    if item.get("exact"):
        return exact_match(prediction, references)
    words = _words(prediction)[:READ_TOKENS]
    found = min((at for each in references if (at := _place(words, each)) is not None), default=None)
    if (
        found is None
        or _goes_round(words)
        or _is_list(prediction)
        or _names_others(words, references, prompt)
    ):
        return 0.0
    others = [at for each in item.get("instead", ()) if (at := _place(words, each)) is not None]
    return float(all(found < at for at in others))


GENERAL = Metric("right", right, True, "the answer names a reference, and no list of guesses")


@cache
def _items() -> Mapping[str, Mapping[str, Any]]:
    """The questions by their text, in their order."""
    lines = (files("tunesmith.evaluate.findings") / "general.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    return {item["question"]: item for item in items}


def _words(text: str) -> list[str]:
    """Tokens, with signs as spaces: of 12+7=19 the 19 is a word."""
    text = unicodedata.normalize("NFKC", without_thinking(text))
    return tokens("".join(" " if unicodedata.category(char)[0] == "S" else char for char in text))


def _place(words: Sequence[str], reference: str) -> int | None:
    """Where the reference's words stand one after the other; 十二 isn't in 二十二."""
    wanted = _words(reference)
    for at in range(len(words) - len(wanted) + 1):
        beside = {*words[max(0, at - 1) : at], *words[at + len(wanted) : at + len(wanted) + 1]}
        if list(words[at : at + len(wanted)]) == wanted and not (_numeral(wanted) and beside & _NUMERALS):
            return at
    return None


def _numeral(words: Sequence[str]) -> bool:
    return all(word in _NUMERALS for word in words)


def _goes_round(words: Sequence[str]) -> bool:
    ((_, times),) = Counter(words).most_common(1)
    return times > REPEATED and times >= len(words) / 2


def _is_list(prediction: str) -> bool:
    pieces = _BETWEEN.split(without_thinking(prediction))
    return sum(1 <= len(_words(piece)) <= (4 if _HAN.search(piece) else 3) for piece in pieces) >= LISTED


def _names_others(words: Sequence[str], references: Sequence[str], prompt: str) -> bool:
    """Whether the answer tries numbers, or answers to other questions, that its own question doesn't say."""
    asked = set(_words(prompt))
    own = {word for each in references for word in _words(each)}
    if any(each.isdecimal() for each in references):
        tried = {word for word in words if word.isdecimal()} - asked - own
        if len(tried) > OTHER_NUMBERS:
            return True
    there = set(words)
    others = [each for each in _telling() if there.issuperset(each) and not own.intersection(each)]
    return len(others) > OTHER_ANSWERS


@cache
def _telling() -> set[tuple[str, ...]]:
    """The words of each answer that hardly turns up by chance: no number, no single character."""
    answers = [item["answers"][0] for item in _items().values()]
    return {
        tuple(_words(each))
        for each in answers
        if len(each) > (1 if _HAN.search(each) else 3) and not each.isdecimal()
    }


_NUMERALS = frozenset("〇零一二三四五六七八九十百千万亿两")
_HAN = re.compile(f"[{HAN}]")
_BETWEEN = re.compile(r"[、,，;；/|\n]|\bor\b|\band\b|或|和")
