"""Multiple choice by likelihood alone: nothing is answered, and nothing is said of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.evaluate.conftest import write_rows
from tunesmith.evaluate import choices as by_likelihood
from tunesmith.evaluate.results import comparison_rows, evaluation_rows
from tunesmith.infer import generate

ROWS: list[dict[str, Any]] = [
    {"instruction": f"第{i}題？", "choices": ["是的", "答案是1，好。", "不是"], "output": "ABC"[i % 3]}
    for i in range(7)
]
OF_ANSWERS = {"empty", "cut", "mean_length", "completion_tokens", "seconds"}


@pytest.fixture(autouse=True)
def _no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate.BatchBackend, "answers", lambda *_: pytest.fail("it answered"))


def test_an_evaluation_by_choices_alone(place: Path, tmp_path: Path) -> None:
    data, run = str(write_rows(tmp_path / "c.jsonl", ROWS)), str(place / "runs/lora")
    result = tunesmith.evaluate(run, data, metrics="choices", dtype="fp32")
    content = result.content
    assert not OF_ANSWERS & content.keys()
    assert content["loss"] > 0
    assert {"choices_acc", "choices_acc_norm", "loss"} <= {name for name, _ in evaluation_rows(content)}
    lines = [json.loads(line) for line in Path(content["predictions"]).read_text("utf-8").splitlines()]
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS, strict=True):
        assert not {"finish", "tokens", "seconds"} & line.keys()
        assert line["prediction"] in row["choices"]
        right = row["choices"]["ABC".index(row["output"])]
        assert line["scores"]["choices_acc"] == float(line["prediction"] == right)
    # What was never said copies nothing, and isn't likelier than anything.
    assert set(content["findings"]) == {"a", "b", "metric", "changed", "advice"}
    assert content["findings"]["advice"] == []
    assert result.report is not None
    assert "choices_acc" in result.report.read_text("utf-8")


def test_a_comparison_by_choices_alone(place: Path, tmp_path: Path) -> None:
    data, run = str(write_rows(tmp_path / "c.jsonl", ROWS)), str(place / "runs/lora")
    content = tunesmith.compare(run, data=data, metrics="choices", dtype="fp32").content
    assert not OF_ANSWERS & (content["a"].keys() | content["b"].keys())
    names = [row[0] for row in comparison_rows(content)]
    assert [name for name in names if "choices" in name] == ["choices_acc", "choices_acc_norm"]
    assert "forgetting" not in content["findings"], "where nothing is answered, no other questions are either"
    json.dumps(content, allow_nan=False)


def test_it_goes_on_where_it_was_interrupted(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = str(write_rows(tmp_path / "c.jsonl", ROWS)), str(place / "runs/lora")
    whole = tunesmith.evaluate(run, data, metrics="choices", dtype="fp32", output=tmp_path / "whole.jsonl")
    monkeypatch.setattr("tunesmith.evaluate.perplexity.FORWARD_TOKENS", 128)  # several passes
    losses = by_likelihood.reply_losses

    def interrupted(*given: Any, **how: Any) -> Any:
        passes = losses(*given, **how)
        yield next(passes)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(by_likelihood, "reply_losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tunesmith.evaluate(run, data, metrics="choices", dtype="fp32", output=tmp_path / "cut.jsonl")
    notes: list[str] = []
    cut = tunesmith.evaluate(
        run, data, metrics="choices", dtype="fp32", output=tmp_path / "cut.jsonl", note=notes.append
    )
    assert "were there already" in notes[0]
    scores = [result.measured.scores("choices_acc") for result in (whole, cut)]  # type: ignore[union-attr]
    assert scores[0] == scores[1]


def test_an_answer_that_another_metric_scores_is_asked_for(place: Path, tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "c.jsonl", ROWS))
    with pytest.raises(pytest.fail.Exception, match="it answered"):
        tunesmith.evaluate(str(place / "runs/lora"), data, metrics=["choices", "f1_char"], dtype="fp32")
