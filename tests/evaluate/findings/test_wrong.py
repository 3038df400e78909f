"""Which rows count as wrong, how answers are compared with the truth, and what may be concluded of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.evaluate.findings.made import row, trained
from tunesmith.evaluate.findings import collect
from tunesmith.evaluate.findings.changed import ranking
from tunesmith.evaluate.findings.wrong import MOST, can_be_compared, wrong
from tunesmith.evaluate.metrics import METRICS, Metric
from tunesmith.evaluate.metrics.given_choices import CHOICES
from tunesmith.evaluate.perplexity import RowLoss
from tunesmith.evaluate.row import Choices, RowResult

F1 = METRICS["f1_char"]


def scored(*scores: float, name: str = "f1_char") -> list[RowResult]:
    return [replace(row(f"答{at}"), scores={name: score}) for at, score in enumerate(scores)]


def test_wrong_is_the_worse_half_of_the_scale_and_not_the_lowest_of_good_ones() -> None:
    found = wrong(F1, scored(0.86, 0.2, 1.0, 0.5, 0.0))
    assert (found.rows, found.limit, found.side) == ([4, 1], 0.5, "below")
    found = wrong(METRICS["copied"], scored(0.86, 0.2, 0.6, 0.5, name="copied"))
    assert (found.rows, found.side) == ([0, 2], "above")  # less is better
    assert wrong(F1, scored(0.86, 0.9)).rows == []


def test_without_ends_it_is_the_lowest_third() -> None:
    own = Metric("own", F1.score, False, "of one's own", least=None, top=None)
    found = wrong(own, scored(7.0, -3.0, 5.0, 6.0, 0.5, 9.0, 8.0, name="own"))
    assert (found.rows, found.limit, found.side) == ([1, 4], None, "third")


def test_fifty_are_looked_at_and_all_are_counted() -> None:
    found = wrong(F1, scored(*[0.1] * 60))
    assert (len(found.rows), len(found.worst)) == (60, MOST)


def test_whole_answers_alone_are_compared() -> None:
    whole = row("好。")
    assert can_be_compared(whole)
    assert not can_be_compared(replace(whole, completion=replace(whole.completion, finish="length")))
    assert not can_be_compared(row(" \n"))
    assert not can_be_compared(replace(whole, answered=False))
    lettered = replace(row("B。", reference="B"), choices=Choices(("上海", "北京"), 1))
    assert not can_be_compared(lettered)
    assert can_be_compared(replace(lettered, references=("北京",)))


def invention(truth: RowLoss, own: RowLoss, n: int = 8) -> dict[str, Any]:
    rows = [replace(one, loss=truth) for one in scored(*[0.0] * n)]
    nothing = [None] * n
    return collect._invention(F1, rows, dict.fromkeys(range(n), own), nothing, nothing, trained("x"))


def test_whole_texts_are_compared_and_not_their_means() -> None:
    """5 tokens of -3.82 together against 8 of -5.12: per token the true answer is the likelier one."""
    found = invention(RowLoss(5.12, 8, 20), RowLoss(3.82, 5, 12))
    assert (found["own_likelier"], found["truth_likelier"], found["per_token"]) == (8, 0, 0)
    assert collect._advice({"invention": found}) == []


def test_a_true_answer_that_is_likelier_for_being_short_gives_no_advice() -> None:
    found = invention(RowLoss(9.0, 3, 6), RowLoss(20.0, 40, 90))
    assert (found["own_likelier"], found["truth_likelier"], found["per_token"]) == (0, 8, 0)
    assert collect._advice({"invention": found}) == []
    found = invention(RowLoss(9.0, 9, 6), RowLoss(20.0, 10, 90))
    assert (found["truth_likelier"], found["per_token"]) == (8, 8)
    assert collect._advice({"invention": found}) == ["decoding"]
    few = invention(RowLoss(9.0, 9, 6), RowLoss(20.0, 10, 90), n=5)
    assert collect._advice({"invention": few}) == []  # of five rows nothing is concluded


@pytest.mark.parametrize(("missing", "held_own", "advice"), [(6, 2, "not_in_data"), (2, 6, "not_learnt")])
def test_not_in_the_data_or_not_learnt(missing: int, held_own: int, advice: str) -> None:
    found = {
        "coverage": {"wrong": 8, "wrong_not_held": missing},
        "invention": {"n": 8, "held_own": held_own, "per_token": 0},
    }
    assert collect._advice(found) == [advice]
    # Rows that aren't in the data and yet are right need nothing.
    assert collect._advice({"coverage": {"wrong": 0, "wrong_not_held": 0}}) == []


def test_the_data_is_searched_for_the_text_of_a_choice() -> None:
    asked = "A. 黃河入海流\nB. 白日依山盡"
    lettered = replace(
        row("是。", reference="B", prompt=asked), choices=Choices(("黃河入海流", "白日依山盡"), 1)
    )
    assert lettered.truth == "白日依山盡"
    assert lettered.shown_references == ("B. 白日依山盡",)
    told = collect._coverage(F1, [lettered], [None], [collect.Cover(1.0, 0)])
    assert (told["held"], told["by_letter"], told["wrong"], told["wrong_not_held"]) == (1, 1, 1, 0)


def test_rows_are_ranked_by_what_looks_at_the_answers() -> None:
    assert ranking([*CHOICES, METRICS["choice"]]) is METRICS["choice"]
    assert ranking(CHOICES) is CHOICES[0]
