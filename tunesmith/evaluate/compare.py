"""Measure two models on the same rows, and say what the difference is worth.

Typically A is the base and B the tuned model. Every row is answered by both, so differences are paired: what
one row makes hard for both doesn't blur the result.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.figures import difference, figure, verdicts
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.perplexity import RowLoss
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.run import AGAIN, Evaluation, grouped, measured
from tunesmith.evaluate.statistics import Interval, Paired, paired_ratio, sign_flip, verdict
from tunesmith.records import Completer, Conversation
from tunesmith.worklog import Claim, claim, write_lines

PARTS = (".a", ".b")
"""What tells the two worklogs of an output apart."""
Side = Completer | Callable[[], Completer]
"""A model, or a function that loads it when its turn comes, so that two large ones needn't fit at once."""
Also = Callable[[int, Completer, Evaluation], None]
"""Called in a side's turn, when it has answered all rows: its number, the model, what was measured."""


@dataclass
class Comparison:
    """Two evaluations of the same rows. Differences are B - A; verdicts are said of B."""

    a: Evaluation
    b: Evaluation
    output: Path
    notes: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        return self.b.n

    def rows(self) -> list[tuple[RowResult, RowResult]]:
        """Both results of each row, in the rows' order."""
        return list(zip(self.a.rows, self.b.rows, strict=True))

    def lines(self) -> list[dict[str, Any]]:
        """What stands in `output`: a line a row, with both answers."""
        return [_line(row_a, row_b) for row_a, row_b in self.rows()]

    def to_json(self) -> dict[str, Any]:
        """The figures: n, metrics, loss, notes, and the two evaluations as a and b.

        {"n", "metrics": {name: {a, b, difference: {value, low, high}, wins, losses, ties, verdict}},
        "loss": {a, b, difference, verdict}, "a": …, "b": …, "notes": […]}
        """
        results = [difference(metric, self.a.rows, self.b.rows) for metric in self.b.metrics]
        told = verdicts(self.b.metrics, results, self.b.rows)
        figures_a, figures_b = self.a.to_json(), self.b.to_json()
        metrics = {
            metric.name: {
                "a": figures_a["metrics"][metric.name]["value"],
                "b": figures_b["metrics"][metric.name]["value"],
                **result.to_json(),
                "verdict": word,
            }
            for metric, result, word in zip(self.b.metrics, results, told, strict=True)
        }
        groups = self._groups()
        loss = self._loss()
        return {
            "kind": "comparison",
            "n": self.n,
            "metrics": metrics,
            **({"primary": self.b.metrics[0].name} if self.b.metrics else {}),
            **({"loss": loss} if loss else {}),
            **({"groups": groups} if groups else {}),
            "notes": self.notes,
            "predictions": str(self.output),
            "a": figures_a,
            "b": figures_b,
        }

    def _groups(self) -> dict[str, dict[str, Any]]:
        """Differences by column and value; no verdicts: among many groups some differ by chance."""
        groups_a, groups_b = grouped(self.a.rows), grouped(self.b.rows)
        return {
            column: {
                value: {"n": len(rows), "metrics": self._differences(groups_a[column][value], rows)}
                for value, rows in values.items()
            }
            for column, values in groups_b.items()
        }

    def _differences(self, a: Sequence[RowResult], b: Sequence[RowResult]) -> dict[str, Any]:
        return {
            metric.name: {
                "a": figure(metric, a).value,
                "b": figure(metric, b).value,
                "difference": difference(metric, a, b).difference.to_json(),
            }
            for metric in self.b.metrics
        }

    def _loss(self) -> dict[str, Any] | None:
        losses_a = [row.loss for row in self.a.rows if row.loss]
        losses_b = [row.loss for row in self.b.rows if row.loss]
        if self.a.loss is None or self.b.loss is None or len(losses_a) != len(losses_b):
            return None
        difference: Interval | None = None
        told = "the tokenizers differ: see bits_per_byte"
        if [loss.tokens for loss in losses_a] == [loss.tokens for loss in losses_b]:
            difference = paired_ratio(
                ([loss.nll_sum for loss in losses_a], [loss.tokens for loss in losses_a]),
                ([loss.nll_sum for loss in losses_b], [loss.tokens for loss in losses_b]),
            )
            told = verdict(_of_loss(difference, losses_a, losses_b), self.n, lower_is_better=True)
        return {
            "a": self.a.loss.loss,
            "b": self.b.loss.loss,
            "difference": difference.to_json() if difference else None,
            "verdict": told,
        }


def compare(
    a: Side,
    b: Side,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    *,
    output: Path,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Comparison:
    """Measure A, then B, on the same conversations; both answers of each row go to `output` (JSONL).

    A line has id, prompt, references, `prediction` (B's), and under `a` and `b` what `evaluate` writes of an
    answer. While it runs, each model's answers are in OUTPUT.a.partial and OUTPUT.b.partial.
    """
    with claim(output, AGAIN) as held:
        comparison = compared(held, a, b, conversations, metrics, watch=watch, note=note)
        write_lines(output, comparison.lines())
    return comparison


def compared(
    held: Claim,
    a: Side,
    b: Side,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    *,
    watch: Watch | None = None,
    note: Note = lambda _: None,
    also: Also = lambda *_: None,
) -> Comparison:
    """`compare`, without writing the output, which is held already."""
    result_a = _measured(held, a, 0, conversations, metrics, watch, note, also)
    result_b = _measured(held, b, 1, conversations, metrics, watch, note, also)
    return Comparison(result_a, result_b, held.output, _notes(result_a, result_b))


def _measured(
    held: Claim,
    side: Side,
    at: int,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    watch: Watch | None,
    note: Note,
    also: Also,
) -> Evaluation:
    model = side() if callable(side) else side
    result = measured(held, model, conversations, metrics, part=PARTS[at], watch=watch, note=note)
    also(at, model, result)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def _of_loss(difference: Interval | None, a: Sequence[RowLoss], b: Sequence[RowLoss]) -> Paired:
    """The difference of two losses with the p of its rows; without an interval, one that says nothing."""
    rows = [row_b.nll_sum - row_a.nll_sum for row_a, row_b in zip(a, b, strict=True)]
    wins, losses = sum(row < 0 for row in rows), sum(row > 0 for row in rows)
    interval = difference or Interval(0.0, -math.inf, math.inf)
    return Paired(interval, wins, losses, len(rows) - wins - losses, sign_flip(rows))


def _notes(a: Evaluation, b: Evaluation) -> list[str]:
    """What makes the two less alike than they should be."""
    notes = []
    template_a, template_b = a.facts.get("template") or {}, b.facts.get("template") or {}
    if template_a.get("sha256") != template_b.get("sha256"):
        notes.append(
            f"The prompts are written by different templates: A by {template_a.get('name', 'unknown')}, "
            f"B by {template_b.get('name', 'unknown')}."
        )
    if a.facts.get("sampling") != b.facts.get("sampling"):
        notes.append("The sampling settings differ.")
    return notes


def _line(a: RowResult, b: RowResult) -> dict[str, Any]:
    return {
        "id": b.id,
        "prompt": b.prompt,
        "prediction": b.completion.text,
        "references": list(b.references),
        "a": a.answer_json(),
        "b": b.answer_json(),
    }
