"""How much an answer and a reference share: whole answers, bags of tokens, runs of n tokens, a subsequence.

The best reference counts; an empty prediction scores 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import SYLLABLE, is_empty, tokens, without_thinking


def exact_match(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """1 if the prediction's tokens are exactly those of one of the references, else 0."""
    return float(not is_empty(prediction) and any(_equal(prediction, each) for each in references))


def f1_char(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """F1 of the two bags of tokens, the largest over the references; 0 for an empty prediction.

    precision = common tokens / predicted tokens, recall = common tokens / reference tokens, a token counted
    as often as it occurs in both. Source: SQuAD v1.1's evaluation (Rajpurkar et al. 2016), with Han
    characters as tokens.
    """
    return best(_f1_of_tokens, prediction, references)


def rouge_n(n: int) -> Callable[[str, Sequence[str], str], float]:
    """F1 of the two bags of n-grams of `rouge_tokens`. Source: Lin 2004, ROUGE, section 2."""

    def score(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
        def one(left: str, right: str) -> float:
            return bag_f1(ngrams(rouge_tokens(left), n), ngrams(rouge_tokens(right), n))

        return best(one, without_thinking(prediction), references)

    return score


def rouge_l(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """F1 of the longest common subsequence of `rouge_tokens`. Source: Lin 2004, ROUGE, section 3.

    P = length / predicted tokens, R = length / reference tokens, F = 2 P R / (P + R): with recall alone, as
    some report it, a longer answer is never worse.
    """
    return best(_lcs_f1, without_thinking(prediction), references)


def best(one: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    """The largest score over the references; 0 for an empty prediction."""
    if is_empty(prediction):
        return 0.0
    return max((one(prediction, reference) for reference in references), default=0.0)


def bag_f1(left: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """F1 of two bags: what is common is counted as often as it occurs in both."""
    common = (Counter(left) & Counter(right)).total()
    return 2 * common / (len(left) + len(right)) if common else 0.0


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def rouge_tokens(text: str) -> list[str]:
    """Tokens as rouge_score cuts English, without its deletion of all that isn't ASCII.

    >>> rouge_tokens("Don't 跑步 3.5")
    ['don', 't', '跑', '步', '3', '5']
    """
    return _ROUGE_TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def lcs_length(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, a row of the table in one integer (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for at, item in enumerate(left):
        places[item] = places.get(item, 0) | 1 << at
    whole = (1 << len(left)) - 1
    row = whole
    for item in right:
        found = row & places.get(item, 0)
        row = (row + found | row - found) & whole
    return len(left) - row.bit_count()


def _equal(prediction: str, reference: str) -> bool:
    left, right = tokens(prediction), tokens(reference)
    if left or right:
        return left == right
    return without_thinking(prediction).strip() == without_thinking(reference).strip()


def _f1_of_tokens(prediction: str, reference: str) -> float:
    left, right = tokens(prediction), tokens(reference)
    # Texts of punctuation only have no tokens: the same one is right all the same.
    return bag_f1(left, right) if left or right else float(_equal(prediction, reference))


def _lcs_f1(prediction: str, reference: str) -> float:
    left, right = rouge_tokens(prediction), rouge_tokens(reference)
    common = lcs_length(left, right)
    return 2 * common / (len(left) + len(right)) if common else 0.0


_ROUGE_TOKEN = re.compile(rf"[{SYLLABLE}]|[^\W_{SYLLABLE}]+")

OVERLAP = (
    Metric("exact_match", exact_match, True, "the same tokens as a reference"),
    Metric("f1_char", f1_char, False, "F1 of characters (Chinese) or words against the best reference"),
    Metric("rouge_1", rouge_n(1), False, "F1 of single characters or words, as ROUGE cuts them"),
    Metric("rouge_2", rouge_n(2), False, "F1 of pairs of neighbours"),
    Metric("rouge_l", rouge_l, False, "F1 of the longest common subsequence"),
)
