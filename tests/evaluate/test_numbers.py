"""Numbers are written alike in terminal, page and Markdown, in Chinese with Chinese units."""

from __future__ import annotations

from pathlib import Path

import pytest

import tunesmith
from tests.evaluate.made_run import Scripted, couplets
from tunesmith.disk import write_json
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.findings.sentences import say
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.numbers import interval, number, percent
from tunesmith.evaluate.report.figures import Value, shown
from tunesmith.evaluate.results import side_rows
from tunesmith.words import duration


def test_a_minus_is_one_and_zero_has_no_sign() -> None:
    assert [number(value, sign=True) for value in (0.25, -0.25, 0.0, 0.0004, -0.0004)] == [
        "+0.250", "−0.250", "0.000", "0.000", "0.000",
    ]  # fmt: skip
    written = [number(value) for value in (-0.25, -0.0, -1234.5, 99.5)]
    assert written == ["−0.250", "0.000", "−1,234", "99.500"]
    assert [percent(value, sign=True) for value in (-0.067, 0.0, 0.5)] == ["−6.7 %", "0.0 %", "+50.0 %"]
    assert [percent(value) for value in (0.83, 0.0, 1.0)] == ["83 %", "0 %", "100 %"]


def test_terminal_and_page_write_a_difference_alike() -> None:
    found = {"value": 0.133, "low": 0.0, "high": 0.3}
    on_page = " ".join(shown(Value(0.133, 0.0, 0.3), sign=True))
    assert interval(found, sign=True) == on_page == "+0.133 [0.000, +0.300]"
    below = {"value": -0.133, "low": -0.3, "high": -0.0}
    assert interval(below, sign=True) == "−0.133 [−0.300, 0.000]"


@pytest.mark.parametrize(
    ("seconds", "chinese"), [(134, "2 分 14 秒"), (14, "14 秒"), (900, "15 分 0 秒"), (7380, "2 小时 3 分钟")]
)
def test_times_are_chinese_within_a_sentence_too(seconds: float, chinese: str) -> None:
    assert in_chinese(duration(seconds)) == chinese
    assert in_chinese(say("took", time=duration(seconds))).startswith(f"两个模型共用时 {chinese}；")


def test_one_length_is_one_number_in_every_table(tmp_path: Path) -> None:
    """White space around an answer and its thinking are counted by neither."""
    said = (" \n床前明月光\n", "<think>月？</think>疑是地上霜。", "  ")
    a, b, c = (Scripted(name, lambda _, text=text: text) for name, text in zip("abc", said, strict=True))  # type: ignore[misc]
    output = tmp_path / "out.jsonl"
    content = compare(a, b, couplets(8), [METRICS["length"]], output=output, more=[c]).to_json()
    rows = {name: cells for name, *cells in side_rows(content)}
    assert [cell.partition(" ")[0] for cell in rows["length"]] == ["5.000", "6.000", "0.000"]
    assert [cell.partition(" ")[0] for cell in rows["mean length"]] == ["5.0", "6.0", "0.0"]
    figures = tmp_path / "out.json"
    write_json(figures, {**content, "data": "x.jsonl"})
    told = tunesmith.report_text(figures).splitlines()
    for name in ("length", "mean length"):
        lines = [line for line in told if line.startswith(f"| {name} | 8 | 5.000 ")]
        assert [line.split(" | ")[3].partition(" ")[0] for line in lines][:2] == ["6.000", "0.000"], name
