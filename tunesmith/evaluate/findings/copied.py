"""Which answers copy training rows: runs of at least 10 tokens that stand so in a training row's answer.

A token is a Han character or a word, without punctuation and case (`metrics.tokens`). What the reference or
the question says itself is no copy. The answers' n-grams are indexed and the training rows pass by, so that
memory is that of the answers, however many rows there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.evaluate.findings.training_rows import TrainingRow
from tunesmith.evaluate.metrics import tokens
from tunesmith.evaluate.metrics.overlap import ngrams
from tunesmith.evaluate.row import RowResult

LEAST = 10
"""Tokens in a row that make a copy: a couplet of five-character lines, half a sentence of prose."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The longest run of an answer that stands in a training row; `cover` is the share of the answer's tokens
    that lie in copied runs of any row.
    """

    length: int
    text: str
    cover: float
    origin: str


def copies(
    rows: Sequence[RowResult], training: Sequence[TrainingRow], *, least: int = LEAST
) -> list[Copy | None]:
    """For each row's answer its longest copy from training rows' answers; None where it copies nothing."""
    answers = [tokens(row.completion.text) for row in rows]
    index: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for at, (row, words) in enumerate(zip(rows, answers, strict=True)):
        given = {gram for text in (row.prompt, *row.references) for gram in ngrams(tokens(text), least)}
        for place, gram in enumerate(ngrams(words, least)):
            if gram not in given:
                index[gram].append((at, place))
    longest: dict[int, tuple[int, int, str]] = {}  # answer -> length, end, origin
    covered: dict[int, set[int]] = defaultdict(set)
    for row_of in training if index else ():
        # Runs that grow: answer and distance of the two places -> the last place in the row, and the length.
        growing: dict[tuple[int, int], tuple[int, int]] = {}
        for place_there, gram in enumerate(ngrams(tokens(row_of.answer), least)):
            for at, place in index.get(gram, ()):
                last, length = growing.get((at, place - place_there), (-2, 0))
                length = length + 1 if last == place_there - 1 else least
                growing[at, place - place_there] = place_there, length
                covered[at].update(range(place, place + least))
                if length > longest.get(at, (0, 0, ""))[0]:
                    longest[at] = length, place + least, row_of.origin
    return [
        _copy(answers[at], longest[at], covered[at]) if at in longest else None for at in range(len(rows))
    ]


def _copy(words: Sequence[str], found: tuple[int, int, str], covered: set[int]) -> Copy:
    length, end, origin = found
    return Copy(length, _joined(words[end - length : end]), len(covered) / len(words), origin)


def _joined(words: Sequence[str]) -> str:
    """Tokens as text: Han characters without spaces, words with."""
    text = ""
    for word in words:
        text += (" " if text and text[-1].isascii() and word.isascii() else "") + word
    return text
