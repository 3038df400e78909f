"""Whether rows can be scored by metrics at all: what lacks, of all rows, before anything is answered."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.errors import DataError
from tunesmith.evaluate.metrics.given_choices import choices_of, right_choice
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.records import Conversation


def check_scorable(metrics: Sequence[Metric], conversations: Sequence[Conversation]) -> None:
    """Raise DataError naming every row that a metric can't score: it would count as a wrong answer."""
    if any(metric.evidence != "answer" for metric in metrics):
        _check_choices(conversations)
    for metric in metrics:
        _check_references(metric, conversations)


def _check_choices(conversations: Sequence[Conversation]) -> None:
    """Rows without choices, or whose answer is none of them."""
    bad = []
    for row in conversations:
        if len(choices_of(row)) < 2:
            bad.append(f"{row.origin}: it has no `choices` (a list of texts, or columns A, B, C, …)")
        elif right_choice(row) is None:
            bad.append(f"{row.origin}: its answer {row.references[0]!r} is no choice and no letter of one")
    if bad:
        raise DataError(
            f"{len(bad)} of {len(conversations)} rows can't be scored by `choices`.",
            details=bad,
            fix="Give each row its choices and the right one, as its text or its letter.",
        )


def _check_references(metric: Metric, conversations: Sequence[Conversation]) -> None:
    """Rows whose references hold nothing that the metric reads."""
    reads = metric.reads
    if reads is None:
        return
    bad = [row for row in conversations if row.references and not any(map(reads, row.references))]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(conversations)} rows can't be scored by `{metric.name}` "
            f"({metric.description}): no reference of theirs says it.",
            details=[f"{row.origin}: its answer is {row.references[0][:60]!r}" for row in bad],
            fix="Use a metric for free text (f1_char, exact_match), or give these rows such references.",
        )
