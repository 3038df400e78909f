"""Findings of real tiny runs: who knows rows by heart is found to, who hardly learnt isn't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.findings.conftest import ANSWERS
from tunesmith.evaluate.findings import sections
from tunesmith.evaluate.measure import measure_one, measure_several
from tunesmith.evaluate.questions import choose_metrics, read_questions
from tunesmith.infer.config import Sampling


def measured(
    eight: Path, name: str, output: Path, data: str = "asked.jsonl", **options: Any
) -> dict[str, Any]:
    found = read_questions(str(eight / data))
    chosen, short = choose_metrics("f1_char", found), Sampling(max_new_tokens=90)
    result = measure_several(
        (str(eight / "runs" / name),), found, chosen, short, output=output, dtype="fp32",
        **{"forgetting": False, **options},
    )  # fmt: skip
    kept: dict[str, Any] = json.loads(result.file.read_text(encoding="utf-8"))
    assert kept["findings"] == result.content["findings"]
    return kept


@pytest.fixture(scope="module")
def heart(eight: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(eight, "heart", tmp_path_factory.mktemp("heart") / "out.jsonl")


def test_who_knows_rows_by_heart_is_found_to_copy_them(eight: Path, heart: dict[str, Any]) -> None:
    copied = heart["findings"]["copied"]
    assert copied["n"] == 16
    assert (copied["a"], copied["verdict"]) == (0, "worse")
    assert copied["b"] >= 8
    for row in copied["rows"]:
        path, line = row["origin"].rsplit(":", 1)
        assert Path(path) == eight / "train.jsonl"
        answer = json.loads((eight / "train.jsonl").read_text("utf-8").splitlines()[int(line) - 1])["output"]
        assert row["length"] >= 10
        assert row["text"][:2] in answer
    assert "copies" in heart["findings"]["advice"]


def test_what_it_was_never_told_is_found_missing(heart: dict[str, Any]) -> None:
    found = heart["findings"]
    assert found["training"] == {"rows": 8, "gone": 0}
    assert found["coverage"]["held"] == 0
    invention = found["invention"]
    assert invention["n"] >= 5
    assert invention["not_held"] == invention["n"]
    assert invention["n"] <= invention["wrong"] <= 16
    # It knows neither, so that chance may favour the truth once or twice.
    assert invention["own_likelier"] >= invention["n"] - 2
    assert invention["own_likelier"] == sum(row["own_nll"] < row["truth_nll"] for row in invention["rows"])
    for row in invention["rows"]:
        assert row["prompt"][:2] == row["nearest"]["question"][:2]  # the topic
        assert row["nearest"]["answer"] in ANSWERS
    assert found["advice"][0] == "not_in_data"


def test_who_hardly_learnt_copies_nothing(eight: Path, tmp_path: Path) -> None:
    found = measured(eight, "hardly", tmp_path / "out.jsonl")["findings"]
    assert (found["copied"]["a"], found["copied"]["b"]) == (0, 0)
    assert "copies" not in found["advice"]
    assert found["changed"]["same"] == 16


def test_rows_that_were_learnt_are_held_and_no_copies(eight: Path, tmp_path: Path) -> None:
    found = measured(eight, "heart", tmp_path / "out.jsonl", data="train.jsonl")["findings"]
    assert found["coverage"]["held"] == 8
    assert found["copied"]["b"] <= 1  # what the reference says is no copy
    assert found["changed"]["better"] >= 6
    best = found["changed"]["most_better"][0]
    assert best["score_b"] > best["score_a"]


def test_general_questions_are_counted_and_named(eight: Path, tmp_path: Path) -> None:
    found = measured(eight, "heart", tmp_path / "out.jsonl", forgetting=True)["findings"]["forgetting"]
    assert found["n"] == 60
    assert found["by"]["zh"]["n"] == found["by"]["en"]["n"] == 30
    assert (
        found["b"] - found["a"]
        == found["wins"] - found["losses"]
        == len(found["gained"]) - len(found["lost"])
    )
    assert found["a"] == sum(of["a"] for of in found["by"].values())
    assert not list(tmp_path.glob("*.partial*"))


def test_a_run_alone_has_what_needs_no_second_model(eight: Path, tmp_path: Path) -> None:
    found = read_questions(str(eight / "asked.jsonl"))
    result = measure_one(
        str(eight / "runs/heart"), found, choose_metrics("f1_char", found), Sampling(max_new_tokens=90),
        output=tmp_path / "out.jsonl", dtype="fp32",
    )  # fmt: skip
    told = result.content["findings"]
    assert set(told) == {
        "a",
        "b",
        "metric",
        "changed",
        "training",
        "copied",
        "coverage",
        "invention",
        "advice",
    }
    assert told["a"] is told["copied"]["a"] is None
    assert told["copied"]["b"] >= 8
    assert [section.title for section in sections(result.content)] == [
        "Copied from the training rows", "Does the training data hold the answers?",
        "Why the worst answers are wrong", "Rows with the lowest score", "What to change",
    ]  # fmt: skip


def test_training_files_that_changed_or_went_are_said(eight: Path, tmp_path: Path) -> None:
    file = eight / "train.jsonl"
    kept = file.read_text(encoding="utf-8")
    try:
        file.write_text("".join(kept.splitlines(keepends=True)[:5]), encoding="utf-8")
        found = measured(eight, "heart", tmp_path / "fewer.jsonl")
        assert found["findings"]["training"] == {"rows": 5, "gone": 3}
        assert any("3 rows that it learnt from" in line for one in sections(found) for line in one.sentences)
        file.unlink()
        found = measured(eight, "heart", tmp_path / "none.jsonl")
        assert "train.jsonl" in found["findings"]["training"]["error"]
        assert "copied" not in found["findings"]
        assert any("Copying and coverage weren't looked at" in line for line in sections(found)[0].sentences)
    finally:
        file.write_text(kept, encoding="utf-8")
