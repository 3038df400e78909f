"""What verse is looked at by: golden values of an independent script, and values worked out by hand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.metrics.verse import lines

GOLDEN = Path(__file__).parent.parent / "golden" / "form_metrics.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))
NAMES = ("copied", "repeated_lines", "line_lengths", "punctuation")
verses = st.lists(st.text("春眠不覺曉處聞啼鳥", min_size=1, max_size=7), min_size=1, max_size=6)


def score(name: str, prediction: str, reference: str = "", prompt: str = "") -> float:
    return METRICS[name].score(prediction, [reference], prompt)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prediction"][:20])
@pytest.mark.parametrize("name", NAMES)
def test_golden_values(case: dict, name: str) -> None:
    found = METRICS[name].score(case["prediction"], case["references"], case["prompt"])
    assert found == pytest.approx(case[name], abs=1e-12)


def test_golden_file_is_what_its_script_makes() -> None:
    assert runpy.run_path(str(GOLDEN.with_suffix(".py")))["golden"]() == CASES


def test_by_hand() -> None:
    # Of the ten characters 床前明月光 are a run of the prompt.
    assert score("copied", "床前明月光，舉頭望故鄉。", prompt="續寫：床前明月光，") == 5 / 10
    assert score("copied", "明月在天", prompt="床前明月光") == 0  # two in a row are a word
    assert score("copied", "<think>床前明月光</think>低頭", prompt="床前明月光") == 0
    # Three lines, the second and third were there before.
    assert score("repeated_lines", "春眠不覺曉。春眠不覺曉，\n春眠不覺曉") == pytest.approx(2 / 3)
    assert score("line_lengths", "五個字在此，七個字的一行詩", "五個字在此，五個字在此。") == 1 / 2
    assert score("line_lengths", "五個字在此，" * 4, "五個字在此，五個字在此。") == 2 / 4
    assert score("punctuation", "春眠不覺曉,處處聞啼鳥。", "春眠不覺曉，處處聞啼鳥。") == 1 / 2
    assert score("punctuation", "春", "夏") == 1
    assert score("punctuation", "「春」", "春") == 0


def test_a_point_in_a_number_ends_no_line() -> None:
    assert lines("共3.5公里，用1,000元。go on, then") == [
        ("共", "3.5", "公", "里"), ("用", "1,000", "元"), ("go", "on"), ("then",)
    ]  # fmt: skip


@given(verses, verses)
def test_properties(said: list[str], wanted: list[str]) -> None:
    answer, reference = "，".join(said) + "。", "，".join(wanted) + "。"
    for name in NAMES:
        assert 0 <= score(name, answer, reference, reference) <= 1
    assert score("line_lengths", answer, reference) == score("line_lengths", reference, answer)
    assert score("punctuation", answer, reference) == pytest.approx(score("punctuation", reference, answer))
    assert score("copied", answer, prompt=answer) == float(sum(map(len, said)) >= 3)
    assert score("repeated_lines", answer + answer) >= 1 / 2
    assert score("repeated_lines", answer) == 1 - len(set(said)) / len(said)
