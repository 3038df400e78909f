"""What verse is looked at by: what is copied or said twice, how long its lines are, how it is marked.

A line here is what stands between two marks or line breaks: 床前明月光，疑是地上霜。 are two lines of
five. The metrics apply to prose too, whose lines are its clauses.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import tokens, without_thinking
from tunesmith.evaluate.metrics.overlap import bag_f1, best, lcs_length, ngrams

RUN = 3  # tokens of a run that counts as copied: a word of two characters may well come again


def copied(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """Share of an answer's characters (or words) that lie in a run of 3 or more which the prompt has too."""
    said = tokens(prediction)
    there = set(ngrams(tokens(prompt), RUN))
    found = [at for at, run in enumerate(ngrams(said, RUN)) if run in there]
    return len({at + i for at in found for i in range(RUN)}) / len(said) if said else 0.0


def repeated_lines(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """Share of an answer's lines that were there before in it."""
    said = lines(prediction)
    return 1 - len(set(said)) / len(said) if said else 0.0


def line_lengths(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """Share of lines, in their order, that are as long as the reference's; a line too many or too few counts.

    The number of the longest sequence of lengths that both have in common, over the larger number of lines.
    """

    def one(said: str, wanted: str) -> float:
        left, right = ([len(line) for line in lines(text)] for text in (said, wanted))
        return lcs_length(left, right) / max(len(left), len(right), 1)

    return best(one, without_thinking(prediction), references)


def punctuation(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """F1 of the marks of answer and reference, each with the number of the line that it ends.

    ， and , are two marks. Without any mark on both sides it is 1.
    """

    def one(said: str, wanted: str) -> float:
        left, right = list(enumerate(_marks(said))), list(enumerate(_marks(wanted)))
        return bag_f1(left, right) if left or right else 1.0

    return best(one, without_thinking(prediction), references)


def lines(text: str) -> list[tuple[str, ...]]:
    """The tokens of each line of an answer; lines without any are left out."""
    parts = _ENDS.split(without_thinking(text))
    return [found for part in parts if (found := tuple(tokens(part)))]


def _marks(text: str) -> list[str]:
    return [char for char in text if unicodedata.category(char).startswith("P")]


# Marks that end a line; a point or comma between digits doesn't.
_ENDS = re.compile(r"[\n，。、；：！？…]|(?<!\d)[,.;:!?]|[,.;:!?](?!\d)")

VERSE = (
    Metric(
        "copied", copied, False, "share of characters copied from the prompt, in runs of 3 or more",
        better="lower", needs_references=False,
    ),
    Metric(
        "repeated_lines", repeated_lines, False, "share of lines that the answer has said before",
        better="lower", needs_references=False,
    ),
    Metric("line_lengths", line_lengths, False, "share of lines as long as the reference's"),
    Metric("punctuation", punctuation, False, "F1 of marks against the reference's, in their order"),
)  # fmt: skip
