"""Rows of one document aren't independent: what the findings test holds to that as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.evaluate.findings.made import row, trained
from tunesmith.evaluate.findings import collect
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.run import Evaluation

LEARNT = "白日依山盡黃河入海流欲窮千里目"
METRIC = METRICS["f1_char"]


def side(said: str, name: str, documents: int) -> Evaluation:
    rows = [replace(row(said), scores={"f1_char": 0.5}, document=_name(at, documents)) for at in range(24)]
    return Evaluation(name, rows, (METRIC,), None, None, {}, output=Path("p.jsonl"))


def _name(at: int, documents: int) -> str:
    return f"text {at % documents}" if documents else ""


def verdict(documents: int) -> str:
    a, b = side("不知道。", "a", documents), side(LEARNT, "b", documents)
    return str(collect._copied(a, b, trained(LEARNT))["verdict"])


def test_copies_are_counted_over_documents() -> None:
    assert verdict(0) == verdict(12) == "worse"
    assert verdict(3) == "cannot tell with n = 24 from 3 documents; at least 6 documents are needed"


def test_rows_of_one_document_are_not_dealt_out() -> None:
    def scores(documents: int) -> bool:
        rows: list[RowResult] = list(side("好", "b", documents).rows)
        held = [None] * len(rows)
        truths = [collect.Cover(float(at % 2), 0) for at in range(len(rows))]
        return "verdict" in collect._coverage(METRIC, rows, held, truths)

    assert scores(0)
    assert not scores(12)
