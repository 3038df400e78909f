"""The differences of evaluations from the first of them: paired by row, and corrected for their number.

Families of tests (Holm within each): the primary metric against each other model; the loss against each other
model; and everything else of the call, all other metrics of all other models together. With one other model
the first two are a single test each, which stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.evaluate.figures import (
    corrected,
    difference,
    documents_of,
    figure,
    losses_of,
    settled,
    verdicts,
)
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.perplexity import RowLoss
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.run import Evaluation, grouped
from tunesmith.evaluate.statistics import Interval, Paired, holm, paired_ratio, sign_flip, verdict

ELSEWHERE = "its server"
"""Who writes the prompts of a model behind an endpoint."""


def differences(sides: Sequence[Evaluation], figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """{"metrics", "loss", "groups"} of each evaluation but the first, against the first; `figures` are the
    evaluations' JSON.
    """
    a, *others = sides
    shown_a, *shown = (one["metrics"] for one in figures)
    metrics = settled(a.metrics, [side.rows for side in sides])
    results = [[difference(metric, a.rows, b.rows) for metric in metrics] for b in others]
    raised = corrected(results)
    several = len(others) > 1
    losses = _losses(a, others)
    found = []
    for b, paired, p_values, loss, shown_b in zip(others, results, raised, losses, shown, strict=True):
        told = verdicts(metrics, paired, b.rows, p_values)
        groups = _groups(metrics, a, b)
        found.append(
            {
                "metrics": {
                    metric.name: {
                        "a": shown_a[metric.name]["value"],
                        "b": shown_b[metric.name]["value"],
                        **one.to_json(),
                        **({"p_corrected": p_value} if several else {}),
                        "verdict": word,
                    }
                    for metric, one, p_value, word in zip(metrics, paired, p_values, told, strict=True)
                },
                **({"loss": loss} if loss else {}),
                **({"groups": groups} if groups else {}),
            }
        )
    return found


def unlike(a: Evaluation, b: Evaluation, names: tuple[str, str] = ("A", "B")) -> list[str]:
    """What makes two evaluations less alike than they should be."""
    notes = []
    template_a, template_b = a.facts.get("template") or {}, b.facts.get("template") or {}
    if template_a.get("sha256") != template_b.get("sha256"):
        notes.append(
            f"The prompts are written by different templates: {names[0]} by "
            f"{template_a.get('name', ELSEWHERE)}, {names[1]} by {template_b.get('name', ELSEWHERE)}."
        )
    if a.facts.get("sampling") != b.facts.get("sampling"):
        notes.append("The sampling settings differ.")
    return notes


def _groups(metrics: Sequence[Metric], a: Evaluation, b: Evaluation) -> dict[str, dict[str, Any]]:
    """Differences by column and value; no verdicts: among many groups some differ by chance."""
    groups_a, groups_b = grouped(a.rows), grouped(b.rows)
    return {
        column: {
            value: {"n": len(rows), "metrics": _bare(metrics, groups_a[column][value], rows)}
            for value, rows in values.items()
        }
        for column, values in groups_b.items()
    }


def _bare(metrics: Sequence[Metric], a: Sequence[RowResult], b: Sequence[RowResult]) -> dict[str, Any]:
    return {
        metric.name: {
            "a": figure(metric, a).value,
            "b": figure(metric, b).value,
            "difference": difference(metric, a, b).difference.to_json(),
        }
        for metric in metrics
    }


def _losses(a: Evaluation, others: Sequence[Evaluation]) -> list[dict[str, Any] | None]:
    """Loss of each against A's; None where one of the two has none."""
    tested = [_loss_difference(a, b) for b in others]
    p_values = [one[1].p_value for one in tested if one is not None and one[1] is not None]
    raised = iter(holm([p_value for p_value in p_values if p_value is not None]))
    found: list[dict[str, Any] | None] = []
    for b, both in zip(others, tested, strict=True):
        if both is None or a.loss is None or b.loss is None:
            found.append(None)
            continue
        interval, result = both
        told, p_value = "the tokenizers differ: see bits_per_byte", None
        if result is not None:
            p_value, documents = next(raised), documents_of(b.rows)
            told = verdict(
                replace(result, p_value=p_value),
                b.n,
                lower_is_better=True,
                documents=None if documents is None else len(set(documents)),
            )
        found.append(
            {
                "a": a.loss.loss,
                "b": b.loss.loss,
                "difference": interval.to_json() if interval else None,
                **({"p_corrected": p_value} if len(others) > 1 and p_value is not None else {}),
                "verdict": told,
            }
        )
    return found


def _loss_difference(a: Evaluation, b: Evaluation) -> tuple[Interval | None, Paired | None] | None:
    """The interval of the difference and its test, where tokens are the same ones; None without losses."""
    losses_a = [row.loss for row in a.rows if row.loss]
    losses_b = [row.loss for row in b.rows if row.loss]
    if a.loss is None or b.loss is None or len(losses_a) != len(losses_b):
        return None
    if [loss.tokens for loss in losses_a] != [loss.tokens for loss in losses_b]:
        return None, None
    losses_a, losses_b = losses_of(a.rows), losses_of(b.rows)
    interval = paired_ratio(
        ([loss.nll_sum for loss in losses_a], [loss.tokens for loss in losses_a]),
        ([loss.nll_sum for loss in losses_b], [loss.tokens for loss in losses_b]),
    )
    return interval, _of_loss(interval, losses_a, losses_b)


def _of_loss(difference: Interval | None, a: Sequence[RowLoss], b: Sequence[RowLoss]) -> Paired:
    """The difference of two losses with the p of its rows (documents); without an interval, one that says
    nothing.
    """
    rows = [row_b.nll_sum - row_a.nll_sum for row_a, row_b in zip(a, b, strict=True)]
    wins, losses = sum(row < 0 for row in rows), sum(row > 0 for row in rows)
    interval = difference or Interval(0.0, -math.inf, math.inf)
    return Paired(interval, wins, losses, len(rows) - wins - losses, sign_flip(rows))
