"""Findings in the terminal: short by default, their rows on request, no general questions where told so."""

# ruff: noqa: F401, F811 - fixtures are imported by their names

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_eval import FEW, Run, tunesmith
from tests.evaluate.conftest import place


def test_a_comparison_says_what_it_found(tunesmith: Run) -> None:
    code, out, err = tunesmith("compare", "runs/lora", "--data", "valid.jsonl", *FEW)
    assert code == 0
    titles = [line for line in out.splitlines() if line[:1].isupper()]
    assert titles[:4] == [
        "General questions", "Copied from the training rows", "Does the training data hold the answers?",
        "Rows that changed",
    ]  # fmt: skip
    assert "of 60 general questions rightly, B" in out
    assert "None of the 8 answers copies 10 characters (words) in a row" in out
    assert "Of 8 true answers the training data holds " in out
    assert "lowest score" not in out
    assert "With --findings: the rows themselves." in err


def test_rows_on_request_and_no_general_questions(tunesmith: Run) -> None:
    code, out, err = tunesmith(
        "compare", "runs/lora", "--data", "valid.jsonl", "--findings", "--no-forgetting", *FEW
    )
    assert code == 0
    assert "General questions" not in out
    assert "Rows with the lowest score" in out
    assert "問題0？" in out
    assert "With --findings" not in err


def test_two_models_are_asked_on_request_only(tunesmith: Run, tmp_path: Path) -> None:
    words = ("compare", "qwen2", "qwen2", "--data", "valid.jsonl", "--limit", "2", "--json", *FEW)
    result = json.loads(tunesmith(*words, "--output", str(tmp_path / "a.json"))[1])
    assert set(result["findings"]) == {"a", "b", "metric", "changed", "advice"}
    assert result["findings"]["changed"]["same"] == 2
    result = json.loads(tunesmith(*words, "--forgetting", "--output", str(tmp_path / "b.json"))[1])
    assert (result["findings"]["forgetting"]["n"], result["findings"]["forgetting"]["ties"]) == (60, 60)


def test_of_three_it_is_said_whom_the_findings_are_on(tunesmith: Run, tmp_path: Path) -> None:
    words = (
        "--data",
        "valid.jsonl",
        "--limit",
        "2",
        "--no-forgetting",
        "--output",
        str(tmp_path / "c"),
        *FEW,
    )
    code, out, _ = tunesmith("compare", "qwen2", "qwen2", "runs/lora", *words)
    assert code == 0
    assert out.count("Here A = qwen2,  C = runs/lora") == 1
    assert "Here A =" not in tunesmith("compare", "qwen2", "runs/lora", *words[:-4], *FEW)[1]


def test_the_general_questions_are_data_of_their_own(tunesmith: Run, tmp_path: Path) -> None:
    output = str(tmp_path / "general.json")
    words = ("eval", "runs/lora", "--data", "general", "--by", "language", "--output", output, *FEW)
    code, out, err = tunesmith(*words)
    assert code == 0
    assert out.startswith("general, n = 60:  runs/lora")
    assert "60 rows; metrics: right." in err
    assert "language = zh" in out
    assert "training data" not in out  # it isn't meant to hold these answers
    code, out, _ = tunesmith("compare", *words[1:], "--limit", "3")
    assert code == 0
    assert "General questions" not in out
