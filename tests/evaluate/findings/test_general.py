"""The general questions and their rule: who says nothing, everything or the question again is never right."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.findings.general import general_rows, right
from tunesmith.evaluate.questions import choose_metrics, read_questions
from tunesmith.records import Conversation

ROWS = general_rows()
ITEMS = [row.meta["columns"] for row in ROWS]


def score(row: Conversation, answer: str) -> float:
    return right(answer, row.references, row.question)


def points(answer: str) -> float:
    """What a predictor earns that gives one answer to everything."""
    return sum(score(row, answer) for row in ROWS)


def test_sixty_questions_half_of_them_chinese() -> None:
    assert Counter(item["language"] for item in ITEMS) == {"zh": 30, "en": 30}
    assert len({item["id"] for item in ITEMS}) == len({item["question"] for item in ITEMS}) == 60
    assert len({item["kind"] for item in ITEMS}) >= 7
    lines = (files("tunesmith.evaluate.findings") / "general.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ITEMS


def test_a_perfect_predictor_is_right_everywhere_with_every_reference() -> None:
    wrong = [(row.question, each) for row in ROWS for each in row.references if not score(row, each)]
    assert wrong == []


def test_a_perfect_predictor_may_be_wordy() -> None:
    asked = [row for row in ROWS if not row.meta["columns"].get("exact")]
    for form in (
        "答案是{}。",
        "The answer is **{}**.",
        "It's {}, as far as I know.\n\nIs there anything else?",
    ):
        assert [row.id for row in asked if not score(row, form.format(row.references[0]))] == []


@pytest.mark.parametrize(
    "answer", ["", "  \n", "<think>北京</think>", "<think>Tokyo", "I don't know.", "我不知道。"]
)
def test_who_says_nothing_is_never_right(answer: str) -> None:
    assert points(answer) == 0


def test_who_says_the_question_again_is_never_right() -> None:
    assert [row.id for row in ROWS if score(row, row.question)] == []


@pytest.mark.parametrize("between", [" ", ", ", "、", "\n", " or ", "，", "; "])
def test_who_says_everything_is_hardly_ever_right(between: str) -> None:
    everything = [row.references[0] for row in ROWS]
    assert points(between.join(everything)) <= 2
    assert points(between.join(reversed(everything))) <= 2
    assert points(between.join(map(str, range(100)))) == 0
    cities = ["Paris", "London", "Tokyo", "Rome", "Berlin", "Madrid", "北京", "巴黎", "伦敦", "东京"]
    assert points(between.join(cities)) == 0
    assert points(between.join(["小", "东", "光", "水", "红", "天", "地"] * 3)) <= 5


@given(st.text())
def test_any_text_has_a_score(answer: str) -> None:
    assert {score(row, answer) for row in ROWS[::7]} <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("zh-05", "12+7=19", 1),
        ("zh-05", "１９", 1),
        ("zh-05", "119", 0),
        ("zh-05", "十九", 1),
        ("zh-05", "二十九", 0),  # holds 十九
        ("zh-05", "17、18、19、20", 0),
        ("zh-19", "光比声音快", 1),
        ("zh-19", "声音比光快", 0),
        ("zh-25", "水" * 30, 0),  # goes round in circles
        ("zh-30", "好的", 1),
        ("zh-30", "好的，我会照做。", 0),
        ("en-19", "100°C (212°F)", 1),
        ("en-26", "The bicycle is slower than the plane.", 0),
        ("en-26", "A plane is faster than a bicycle.", 1),
        ("en-30", "Ready.", 1),
        ("en-30", "I am ready", 0),
        ("en-11", "The past tense of go is went", 1),
        ("en-21", "Neil Armstrong, in 1969", 1),
        ("en-21", "many people " * 20 + "Armstrong", 0),  # too late
    ],
)
def test_what_counts(name: str, answer: str, expected: float) -> None:
    (row,) = (row for row in ROWS if row.id == name)
    assert score(row, answer) == expected


def test_they_are_data_by_name_unless_a_file_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    questions = read_questions("general", limit=31, by=["language"])
    assert [row.key for row in questions.conversations] == [item["id"] for item in ITEMS[:31]]
    assert [metric.name for metric in choose_metrics(None, questions)] == ["right"]
    assert questions.conversations[30].meta["groups"] == {"language": "en"}
    (tmp_path / "general").write_text('[{"instruction": "a", "output": "b"}]', encoding="utf-8")
    assert [metric.name for metric in choose_metrics(None, read_questions("general"))] == [
        "f1_char",
        "exact_match",
    ]
