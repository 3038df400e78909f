"""Scoring answers that are there already, groups, documents, choices by likelihood, metrics of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tests.evaluate.conftest import write_rows
from tunesmith.errors import DataError, SettingsError, TunesmithError, UsageError
from tunesmith.evaluate.perplexity import answer_loss, reply_losses
from tunesmith.evaluate.questions import read_questions
from tunesmith.infer.local import load
from tunesmith.records import Message

LINES: list[dict[str, Any]] = [
    {
        "id": "a",
        "prompt": "首都？",
        "prediction": "北京",
        "references": ["北京", "北京市"],
        "category": "地理",
    },
    {"id": "b", "prompt": "几点？", "prediction": "八点", "references": ["九点"], "category": "时间"},
    {"id": "c", "prompt": "何时？", "prediction": "", "references": ["明天"], "category": "时间"},
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_predictions_are_scored_without_a_model_and_by_group(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "p.jsonl", LINES)
    before = file.read_bytes()
    result = tunesmith.evaluate(predictions=str(file), metrics=["f1_char", "exact_match"], by="category")
    content = result.content
    assert (content["n"], content["empty"], content["model"]) == (3, 1, str(file))
    assert content["metrics"]["exact_match"]["value"] == pytest.approx(1 / 3)
    assert set(content["metrics"]["f1_char"]) == {"value", "low", "high"}
    # 八点 | 九点 share one of two characters each.
    assert content["groups"]["category"]["时间"]["metrics"]["f1_char"]["value"] == pytest.approx(0.25)
    assert {name: group["n"] for name, group in content["groups"]["category"].items()} == {
        "地理": 1,
        "时间": 2,
    }
    lines = [json.loads(line) for line in Path(content["predictions"]).read_text("utf-8").splitlines()]
    assert [line["scores"]["exact_match"] for line in lines] == [1, 0, 0]
    assert lines[1]["groups"] == {"category": "时间"}
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        # generated_predictions.jsonl of LLaMA-Factory
        (
            {"prompt": "user\n首都？\nassistant\n", "predict": "北京", "label": "北京"},
            "answers from `predict`, references from `label`, prompts from `prompt`",
        ),
        (
            {"prompt": "首都？", "generated_text": "北京", "ground_truth": "北京"},
            "answers from `generated_text`, references from `ground_truth`, prompts from `prompt`",
        ),
        (
            {"question": "首都？", "response": "北京", "answer": "北京"},
            "answers from `response`, references from `answer`, prompts from `question`",
        ),
        (
            {"instruction": "首都？", "input": "", "output": "北京", "label": "北京"},
            "answers from `output`, references from `label`, prompts from `instruction`",
        ),
        (
            {"id": "1", "prompt": "首都？", "prediction": "北京", "predict": "上海", "references": ["北京"]},
            "",
        ),
    ],
)
def test_the_names_of_other_tools_are_known_and_told(tmp_path: Path, line: dict[str, Any], told: str) -> None:
    file = write_rows(tmp_path / "generated_predictions.jsonl", [line])
    result = tunesmith.evaluate(predictions=str(file), metrics="exact_match")
    assert result.content["metrics"]["exact_match"]["value"] == 1.0
    assert result.content["notes"] == ([f"Taken: {told}."] if told else [])


def test_an_output_alone_is_no_answer(tmp_path: Path) -> None:
    # A row to train on: its output is the reference, and nobody has answered yet.
    file = write_rows(tmp_path / "rows.jsonl", [{"instruction": "首都？", "output": "北京"}])
    with pytest.raises(DataError, match="can't be scored") as caught:
        tunesmith.evaluate(predictions=str(file), metrics="exact_match")
    assert "it has no text under `prediction`" in caught.value.details[0]


def test_references_of_another_file_are_joined_by_id(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "instruction": "一？", "output": "甲"},
        {"id": "y", "instruction": "二？", "output": "乙"},
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    file = write_rows(
        tmp_path / "p.jsonl", [{"id": "y", "prediction": "乙"}, {"id": "x", "prediction": "丙"}]
    )
    result = tunesmith.evaluate(data=str(data), predictions=str(file), metrics="exact_match")
    assert result.measured.scores("exact_match") == [1.0, 0.0]  # type: ignore[union-attr]
    assert [row.prompt for row in result.measured.rows] == ["二？", "一？"]  # type: ignore[union-attr,misc]


def test_every_line_that_cannot_be_scored_is_named(tmp_path: Path) -> None:
    lines = [*LINES, LINES[0], {"id": "d", "prompt": "？"}, {"id": "e", "prediction": "好"}]
    file = write_rows(tmp_path / "p.jsonl", lines)
    with pytest.raises(DataError) as refused:
        tunesmith.evaluate(predictions=str(file))
    told = "\n".join(refused.value.details)
    assert "p.jsonl:5: it has no text under `prediction`" in told
    assert "p.jsonl:6: it has no references" in told
    assert "the id a comes more than once" in told
    data = write_rows(tmp_path / "rows.jsonl", [{"id": "z", "instruction": "一？", "output": "甲"}])
    with pytest.raises(DataError) as refused:
        tunesmith.evaluate(data=str(data), predictions=str(write_rows(file, LINES[:1])))
    assert len(refused.value.details) == 2  # an id without a row, a row without a prediction
    with pytest.raises(UsageError, match="nothing to measure"):
        tunesmith.evaluate()
    with pytest.raises(DataError, match="did you mean 'category'"):
        tunesmith.evaluate(predictions=str(write_rows(file, LINES)), by="categry")


def test_rows_of_one_document_are_said_to_be(tmp_path: Path) -> None:
    lines = [{**LINES[i % 3], "id": i, "document": f"doc{i % 4}"} for i in range(24)]
    content = tunesmith.evaluate(predictions=str(write_rows(tmp_path / "p.jsonl", lines))).content
    assert content["notes"] == ["The 24 rows come from 4 documents: intervals and tests are over documents."]


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def longer(prediction, references):\n    return len(prediction) - len(references[0])\n"
        "def broken(prediction, references, prompt):\n    return prediction[0]\n"
        "def nan(prediction, references, prompt):\n    return float('nan')\n"
        "def lonely(prediction):\n    return 1\n"
    )
    file = str(write_rows(tmp_path / "p.jsonl", LINES))

    def asks(prediction: str, references: list[str], prompt: str) -> bool:  # noqa: ARG001
        return prompt.endswith("？")

    content = tunesmith.evaluate(predictions=file, metrics=["mine.py:longer", asks]).content
    assert content["metrics"]["longer"]["value"] == pytest.approx(-2 / 3)
    assert content["metrics"]["asks"]["value"] == 1.0
    for name, error, text in (
        ("mine.py:broken", SettingsError, "failed on the answer"),
        ("mine.py:nan", SettingsError, "gave nan"),
        ("mine.py:lonely", SettingsError, "takes 1 parameters"),
        ("mine.py:none", UsageError, "no function 'none'"),
        ("there.py:none", UsageError, "there is no file there.py"),
    ):
        with pytest.raises(error, match=text):
            tunesmith.evaluate(predictions=file, metrics=[name])
    (tmp_path / "mine.py").write_text("import nothing_like_it\n")
    with pytest.raises(UsageError, match="can't be run: ModuleNotFoundError"):
        tunesmith.evaluate(predictions=file, metrics=["mine.py:longer"])


CHOICES: list[dict[str, Any]] = [
    {"instruction": "答案是？", "choices": ["答案是1，好。", "乙。", "丙丙丙。"], "output": "B"},
    {"instruction": "第二題？", "A": "甲", "B": "答案", "C": "好好好好", "output": "C"},
    {"instruction": "第三題？", "choices": {"text": ["一二三四", "五"], "label": ["A", "B"]}, "output": "五"},
]


def test_choices_are_scored_as_each_reply_alone_is(place: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "c.jsonl", CHOICES)
    result = tunesmith.evaluate(
        str(place / "runs/lora"), str(data), metrics=["choices"], dtype="fp32", max_new_tokens=2
    )
    model = load(str(place / "runs/lora"), dtype="fp32")
    texts = [["答案是1，好。", "乙。", "丙丙丙。"], ["甲", "答案", "好好好好"], ["一二三四", "五"]]
    rows = read_questions(str(data)).conversations
    for per_byte, name in ((False, "choices_acc"), (True, "choices_acc_norm")):
        wanted = []
        for row, choices, right in zip(rows, texts, (1, 2, 1), strict=True):
            alone = [answer_loss(model, [_with(row, choice)])[0] for choice in choices]
            sizes = [
                loss.nll_sum / (len(c.encode()) if per_byte else 1)
                for c, loss in zip(choices, alone, strict=True)
            ]
            wanted.append(float(sizes.index(min(sizes)) == right))
        assert result.measured.scores(name) == wanted  # type: ignore[union-attr]
    json.dumps(result.content, allow_nan=False)


def _with(row: Any, choice: str) -> Any:
    return type(row)(row.messages, row.origin, references=(choice,))


def test_the_loss_of_choices_is_that_of_the_right_texts(place: Path, tmp_path: Path) -> None:
    data, run = str(write_rows(tmp_path / "c.jsonl", CHOICES)), str(place / "runs/lora")
    named = [{**row, "output": text} for row, text in zip(CHOICES, ("乙。", "好好好好", "五"), strict=True)]
    texts = str(write_rows(tmp_path / "named.jsonl", named))
    letters = tunesmith.evaluate(run, data, metrics="choices", dtype="fp32").content["loss"]
    answers = tunesmith.evaluate(run, texts, metrics="length", dtype="fp32", max_new_tokens=1).content["loss"]
    assert letters == pytest.approx(answers, rel=1e-5)


def test_a_question_shared_by_its_choices_changes_no_loss(place: Path) -> None:
    model = load(str(place / "runs/lora"), dtype="fp32")
    question = Message("user", "這是一個很長的問題，" * 12)
    rows = [
        type(row)((question, Message("assistant", f"答案{i}" * (1 + i % 3))), row.origin)
        for i, row in enumerate(read_questions(str(place / "valid.jsonl")).conversations)
    ]
    together = {at: loss for done in reply_losses(model, rows, sharing=True) for at, loss in done.items()}
    apart = {at: loss for done in reply_losses(model, rows) for at, loss in done.items()}
    assert len(together) == len(apart) == 8
    for at, loss in apart.items():
        assert together[at].nll_sum == pytest.approx(loss.nll_sum, rel=1e-5)
        assert math.isfinite(loss.nll_sum)
    assert torch.is_grad_enabled()


def test_rows_without_choices_are_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    rows = [CHOICES[0], {"instruction": "？", "output": "A"}, {**CHOICES[0], "output": "丁"}]
    data = write_rows(tmp_path / "c.jsonl", rows)
    with pytest.raises(TunesmithError) as refused:
        tunesmith.evaluate("no-such-model", str(data), metrics="choices")
    assert [detail.split(": ")[0] for detail in refused.value.details] == [f"{data}:2", f"{data}:3"]
    file = write_rows(tmp_path / "p.jsonl", [{**CHOICES[0], "prediction": "B", "references": ["B"]}])
    with pytest.raises(SettingsError, match="no likelihoods"):
        tunesmith.evaluate(predictions=str(file), metrics="choices")


def test_documents_are_drawn_whole_in_every_figure(tmp_path: Path) -> None:
    # Whole documents are right or wrong, so that 40 rows are worth no more than 8.
    lines = [
        {"id": i, "prediction": "甲" if i // 5 % 2 else "乙", "references": ["甲"], "document": f"d{i // 5}"}
        for i in range(40)
    ]
    widths = []
    for name, kept in (("with", lines), ("without", [{**line, "document": ""} for line in lines])):
        file = str(write_rows(tmp_path / f"{name}.jsonl", kept))
        found = tunesmith.evaluate(predictions=file, metrics=["exact_match", "chrf"]).content["metrics"]
        widths.append([metric["high"] - metric["low"] for metric in found.values()])
    assert all(together > 1.5 * alone for together, alone in zip(*widths, strict=True))
