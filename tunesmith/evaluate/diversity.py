"""How varied the answers to one prompt are: figures between 0 and 1, for Chinese and English alike.

Tokens are those of the metrics: a Han character or a word, without punctuation and case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from tunesmith.evaluate.metrics import tokens
from tunesmith.evaluate.metrics.overlap import ngrams


def distinct(answers: Sequence[str], size: int) -> float | None:
    """Distinct-n (Li et al. 2016, arXiv:1510.03055): different n-grams of all answers over all n-grams.

    None where no answer is that long.
    """
    found = [gram for answer in answers for gram in ngrams(tokens(answer), size)]
    return len(set(found)) / len(found) if found else None


def repetition(answers: Sequence[str], size: int = 3) -> float | None:
    """The share of n-grams that their own answer has already: near 1 where a model goes round in circles.

    The mean over answers; None where no answer is that long.
    """
    shares = []
    for answer in answers:
        grams = ngrams(tokens(answer), size)
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return mean(shares) if shares else None


def similarity(answers: Sequence[str]) -> float | None:
    """The mean over all pairs of answers of twice their common tokens over the tokens of both (Dice, bags).

    1 where all say the same in some order; None for a single answer.
    """
    bags = [Counter(tokens(answer)) for answer in answers]
    if len(bags) < 2:
        return None
    return mean(_dice(a, b) for a, b in combinations(bags, 2))


def _dice(a: Counter[str], b: Counter[str]) -> float:
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0
