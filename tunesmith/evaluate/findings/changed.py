"""Rows that got much better or much worse, those with the lowest score, and answers that stayed the same.

By the first metric of which more (or less) is better, a row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.evaluate.metrics import Metric, tokens
from tunesmith.evaluate.row import RowResult

SHOWN = 5
"""Rows of a kind that are listed."""


def ranking(metrics: Sequence[Metric]) -> Metric | None:
    """The metric that rows are ranked by: the first one that has a direction, and that looks at the answers
    where any of them does: it is answers that are shown and explained.
    """
    directed = [metric for metric in metrics if metric.better != "neither"]
    return next((metric for metric in directed if metric.evidence == "answer"), next(iter(directed), None))


def goodness(metric: Metric, row: RowResult) -> float:
    """The row's score, such that more is better."""
    return row.scores[metric.name] * (-1.0 if metric.better == "lower" else 1.0)


def lowest(metric: Metric, rows: Sequence[RowResult], most: int) -> list[int]:
    """The numbers of the rows that score lowest, the worst first, without those that can't be better."""
    best = -(metric.least or 0.0) if metric.better == "lower" else metric.top
    at = sorted(range(len(rows)), key=lambda number: goodness(metric, rows[number]))
    return [number for number in at if best is None or goodness(metric, rows[number]) < best - 1e-9][:most]


def changed(metric: Metric, a: Sequence[RowResult] | None, b: Sequence[RowResult]) -> dict[str, Any]:
    """{"better", "worse": how many rows, "same": answers with the same words, "most_better", "most_worse",
    "worst": rows}; a row is {id, prompt, references, b, score_b} and, against A, {a, score_a}.
    """
    worst = [_row(metric, None if a is None else a[at], b[at]) for at in lowest(metric, b, SHOWN)]
    if a is None:
        return {"worst": worst}
    gained = [goodness(metric, y) - goodness(metric, x) for x, y in zip(a, b, strict=True)]
    order = sorted(range(len(b)), key=lambda at: gained[at])
    up = [at for at in reversed(order) if gained[at] > 1e-9]
    down = [at for at in order if gained[at] < -1e-9]
    same = sum(tokens(x.completion.text) == tokens(y.completion.text) for x, y in zip(a, b, strict=True))
    return {
        "better": len(up),
        "worse": len(down),
        "same": same,
        "most_better": [_row(metric, a[at], b[at]) for at in up[:SHOWN]],
        "most_worse": [_row(metric, a[at], b[at]) for at in down[:SHOWN]],
        "worst": worst,
    }


def _row(metric: Metric, a: RowResult | None, b: RowResult) -> dict[str, Any]:
    before = {} if a is None else {"a": a.shown_answer, "score_a": a.scores[metric.name]}
    return {
        "id": b.id,
        "prompt": b.prompt,
        "references": list(b.shown_references),
        **before,
        "b": b.shown_answer,
        "score_b": b.scores[metric.name],
    }
