"""What answers are like without a reference: long or short, varied or going round in circles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.metrics.normalise import tokens, without_thinking
from tunesmith.evaluate.metrics.overlap import ngrams

RUN = 4  # tokens of a run that is called a repetition when it comes again


def distinct(n: int) -> Callable[[str, Sequence[str], str], float]:
    """Share of an answer's n-grams that are different ones; 0 for an answer without any.

    Of each answer by itself: over all answers together it would fall with their number. Source: Li et al.
    2016, A diversity-promoting objective function, section 5.
    """

    def score(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
        runs = ngrams(tokens(prediction), n)
        return len(set(runs)) / len(runs) if runs else 0.0

    return score


def repetition(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """Share of an answer's runs of 4 tokens that were there before in it (Welleck et al. 2020, 6.1)."""
    runs = ngrams(tokens(prediction), RUN)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def length(prediction: str, references: Sequence[str], prompt: str = "") -> float:  # noqa: ARG001
    """Characters of the answer, its thinking and the white space around it left out."""
    return float(len(without_thinking(prediction).strip()))


_bare = partial(Metric, binary=False, needs_references=False)

VARIETY = (
    _bare("distinct_1", distinct(1), description="share of different tokens in an answer", better="neither"),
    _bare("distinct_2", distinct(2), description="share of different pairs of tokens", better="neither"),
    _bare("repetition", repetition, description="share of runs of 4 tokens seen before", better="lower"),
    _bare("length", length, description="characters of an answer", better="neither", top=None),
)
