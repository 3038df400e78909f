"""Multiple choice as people read it: the right one's text with its letter, all of them with likelihoods."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.evaluate.conftest import write_rows
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.findings import sections
from tunesmith.evaluate.report import write
from tunesmith.evaluate.report.rows import likelihoods, row_block
from tunesmith.rundir import read_jsonl

CHOICES = ["是的", "答案是1，好。", "不是"]
ROWS = [
    {"instruction": f"第{i}題？", "choices": CHOICES, "output": "ABC"[i % 3], "id": str(i)} for i in range(7)
]
NOTE = "7 of 7 prompts don't show the row's choices"


@pytest.fixture
def data(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(place)
    return str(write_rows(tmp_path / "c.jsonl", ROWS))


def test_a_comparison_tells_choices_with_their_likelihoods(data: str, tmp_path: Path) -> None:
    result = tunesmith.compare(
        "runs/lora", data=data, metrics="choices", dtype="fp32", output=tmp_path / "out.jsonl"
    )
    lines = read_jsonl(tmp_path / "out.jsonl")
    for line, row in zip(lines, ROWS, strict=True):
        assert line["choices"] == CHOICES
        assert line["choice_bytes"] == [6, 19, 6]  # three bytes a Han character or mark, one the digit
        assert line["references"] == [line["right_choice"]] == [row["output"]]
        for side in ("a", "b"):
            log = line[side]["log_likelihoods"]
            assert line[side]["prediction"] == CHOICES[log.index(max(log))]
            # The loss is that of the right choice, with the opposite sign.
            assert math.isclose(line[side]["nll"], -log["ABC".index(row["output"])])
    right = {f"{letter}. {text}" for letter, text in zip("ABC", CHOICES, strict=True)}
    worst = next(one for one in sections(result.content) if one.title == "Rows with the lowest score")
    assert worst.rows
    assert {cell for row in worst.rows for cell in row[3:]} <= right
    told = write.report_text(result.file, language="en")
    assert "C. 不是" in told
    assert f"B. 答案是1，好。  {_shown(lines[0]['a'])} → {_shown(lines[0]['b'])}" in told
    block = json.loads(write.report_text(result.file, "html").split('application/json">')[1].split("<")[0])
    assert block["rows"][2]["references"] == [["C. 不是", 0]]
    assert block["rows"][0]["choices"].splitlines()[1].startswith("B. 答案是1，好。  −")
    assert block["rows"][0]["answers"][0][0] in right
    # Scored again from the file, the reference is still a letter.
    assert lines[0]["references"] == ["A"]


def _shown(side: dict[str, Any]) -> str:
    return f"{side['log_likelihoods'][1]:.3f}".replace("-", "−")


def test_answers_to_choices_are_explained_by_the_choice_text(data: str, tmp_path: Path) -> None:
    """`答案是1，好。` is in the training data; "B", as which the rows name it, would never be."""
    content = tunesmith.evaluate(
        "runs/lora",
        data,
        metrics=["choices", "choice"],
        dtype="fp32",
        max_new_tokens=5,
        output=tmp_path / "o",
    ).content
    found = content["findings"]
    assert found["metric"] == "choice"
    assert found["coverage"]["by_letter"] == 7
    assert found["coverage"]["held"] == 2  # rows 1 and 4
    assert (found["coverage"]["wrong"], found["advice"]) == (0, [])  # no letter is explained to the model
    assert found.get("invention", {"n": 0})["n"] == 0
    assert any("is the letter of a choice" in line for one in sections(content) for line in one.sentences)
    (note,) = [note for note in content["notes"] if note.startswith(NOTE)]
    assert in_chinese(note).startswith("7 条提示中有 7 条")


def test_a_prompt_that_shows_its_choices_needs_no_note(place: Path, tmp_path: Path) -> None:
    rows = [{**row, "instruction": f"{row['instruction']} {CHOICES}"} for row in ROWS]
    data = str(write_rows(tmp_path / "c.jsonl", rows))
    result = tunesmith.evaluate(
        str(place / "runs/lora"),
        data,
        metrics="choice",
        dtype="fp32",
        max_new_tokens=5,
        output=tmp_path / "o",
    )
    assert not any("choices" in note for note in result.content["notes"])
    assert result.content["findings"]["coverage"]["wrong"] == 7


def test_long_choices_are_cut_and_the_page_stays_small() -> None:
    row = {"id": "1", "prompt": "", "references": ["B"], "choices": ["長" * 900, "短"], "right_choice": "B"}
    line = {**row, "prediction": "短", "log_likelihoods": [-900.0, -2.5]}
    assert likelihoods(line, 1200) == f"A. {'長' * 120}…  −900\nB. 短  −2.500"
    three = {**line, "choices": ["長" * 900, "短", *["長" * 900] * 2], "log_likelihoods": [-1.0] * 4}
    many = row_block([three] * 20_000)  # 120 characters of each are too many, 40 aren't
    assert many["limit"] == 400
    assert {row["choices"].count("長") for row in many["rows"]} == {3 * 40}
    assert likelihoods({**line, "log_likelihoods": [-1.0]}, 1200) == ""
    assert likelihoods(row, 1200) == ""
