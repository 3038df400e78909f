"""Which rows count as wrong, so that one can ask why: those on the worse half of the metric's scale.

A score of 0.86 is the lowest of thirty somewhere, and still no mistake. Half is a convention, fixed
beforehand. A metric without both ends has no half: there the lowest third of the rows counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.evaluate.findings.changed import goodness, lowest
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.row import RowResult

MOST = 50
"""Rows that are looked at: each costs a pass over the model's own answer."""


@dataclass(frozen=True)
class Wrong:
    """`rows`: their numbers, the worst first; `limit`: the score that parts them from the others, None where
    they are the lowest third.
    """

    rows: list[int]
    limit: float | None

    side: str
    """Where they are: below or above the limit, or the third."""

    @property
    def worst(self) -> list[int]:
        """Those that are looked at."""
        return self.rows[:MOST]


def wrong(metric: Metric, rows: Sequence[RowResult]) -> Wrong:
    """The rows on the worse half of the scale; of a metric without ends, the lowest third."""
    if metric.least is None or metric.top is None:
        return Wrong(lowest(metric, rows, len(rows) // 3), None, "third")
    limit = (metric.least + metric.top) / 2
    least = -limit if metric.better == "lower" else limit
    there = [at for at in lowest(metric, rows, len(rows)) if goodness(metric, rows[at]) < least]
    return Wrong(there, limit, "above" if metric.better == "lower" else "below")


def can_be_compared(row: RowResult) -> bool:
    """Whether a row's answer can be held against the true one, as texts that a model finds likely.

    Both have to be whole: an answer that the limit cut off has no end of the model's, so its probability is
    that of all texts that begin so. An empty answer says nothing, and a true answer that is the letter of a
    choice isn't what a model writes in a sentence.
    """
    whole = row.completion.finish == "stop" and bool(row.completion.text.strip())
    return row.answered and whole and not row.named_by_letter


def could_be_known(row: RowResult) -> bool:
    """Whether a wrong answer may be for want of knowledge: not where a letter is asked for that the prompt
    doesn't explain.
    """
    choices = row.choices.texts if row.choices and row.named_by_letter else ()
    return all(text.strip() in row.prompt for text in choices)
