"""Rows that a model failed on: every figure is of the rows that are left, and nothing else is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluate.made_run import Scripted, couplets
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.failures import Failed
from tunesmith.evaluate.left_out import answered_by_all
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.perplexity import RowLoss, total
from tunesmith.evaluate.results import pairs
from tunesmith.evaluate.run import Evaluation
from tunesmith.records import Completion, Conversation


def with_losses(path: Path, *means: float, n: int = 12) -> list[Evaluation]:
    """Models whose answers' tokens cost more from row to row, beginning with so much."""
    scripted = [Scripted(f"m{mean}", lambda row: row.references[0]) for mean in means]
    a, b, *more = scripted
    found = compare(a, b, couplets(n), [METRICS["f1_char"]], more=more, output=path / "c.jsonl")
    sides = []
    for side, mean in zip(found.sides, means, strict=True):
        costs = [RowLoss(mean * (10 + at), 10, 30) for at in range(n)]
        rows = [replace(row, loss=cost) for row, cost in zip(side.rows, costs, strict=True)]
        sides.append(replace(side, rows=rows, loss=total(costs), seconds=6.0))
    return sides


def without_rows(side: Evaluation, *numbers: int) -> Evaluation:
    """The side as an endpoint's that failed on these rows: nothing is known of losses."""
    rows = [replace(row, loss=None) for at, row in enumerate(side.rows) if at not in numbers]
    failed = {at: Failed(str(at), "問", ("答",), "HTTP 400") for at in numbers}
    return replace(side, rows=rows, loss=None, failed=failed)


def test_losses_are_those_of_the_rows_that_all_answered(tmp_path: Path) -> None:
    a, b, endpoint = with_losses(tmp_path, 3.0, 2.0, 1.0)
    sides, _ = answered_by_all([a, b, without_rows(endpoint, 0, 1, 11)])
    content = Comparison(sides, tmp_path / "c.jsonl").to_json()
    (first, second, _), loss = content["sides"], content["comparisons"][0]["loss"]
    kept = range(2, 11)
    assert first["loss"] == pytest.approx(sum(3.0 * (10 + at) for at in kept) / 90)
    assert first["label_tokens"] == 90
    assert first["intervals"]["loss"]["value"] == pytest.approx(first["loss"])
    assert loss["b"] - loss["a"] == pytest.approx(loss["difference"]["value"])
    assert second["loss"] == loss["b"]


def test_costs_are_those_of_all_that_a_side_answered(tmp_path: Path) -> None:
    a, b = with_losses(tmp_path, 3.0, 2.0)
    (first, second), _ = answered_by_all([a, without_rows(b, 0, 1, 2)])
    told = first.to_json()
    assert (told["n"], told["completion_tokens"]) == (9, 12 * 12)
    assert told["tokens_per_second"] == 12 * 12 / 6.0
    assert second.to_json()["completion_tokens"] == 9 * 12


def test_a_pair_of_several_says_what_is_left_out(tmp_path: Path) -> None:
    def failing(row: Conversation) -> Completion:
        error = row.origin.row == 2
        return Completion("" if error else "好", "error" if error else "stop", 1, 1, error="HTTP 400" * error)

    a, b = (Scripted(name, lambda row: row.references[0]) for name in "ab")
    found = compare(a, b, couplets(4), [], more=[Answering("c", failing)], output=tmp_path / "c.jsonl")
    left_out = [
        "c failed on 1 row of 4, left out of all figures: 2: HTTP 400.",
        "Compared are the 3 rows that all answered.",
    ]
    content = found.to_json()
    assert [content["notes"], *(one["notes"] for one in pairs(content))] == [left_out] * 3


class Answering(Scripted):
    """Answers with a Completion."""

    def __init__(self, name: str, made: Callable[[Conversation], Completion]) -> None:
        super().__init__(name, str)
        self.made = made

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        return ([self.made(conversation)] for conversation in conversations)


@pytest.mark.parametrize(
    "note",
    [
        "m: x failed on 1 row of 4, left out of all figures: 2: HTTP 400.",
        "m failed on 12 rows of 40, left out of all figures: 2: no; 3: no; and 10 more.",
        "Compared are the 3 rows that all answered.",
        "The prompts are written by different templates: A by chatml, C by plain.",
        "Taken: answers from `predict`, references from `label`, prompts from `prompt`.",
        "Taken: answers from `predict`, references from `label` or rows.jsonl.",
    ],
)
def test_notes_are_there_in_chinese(note: str) -> None:
    assert re.search("[一-龥]", in_chinese(note))
