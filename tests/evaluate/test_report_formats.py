"""What the report says of a result, in numbers, as Markdown and as JSON; and which files it may replace."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.evaluate.made_result import HOSTILE, NAMES, made_result, outside
from tests.evaluate.made_run import made_run
from tunesmith.disk import write_json
from tunesmith.errors import RunError, UsageError
from tunesmith.evaluate import section_sources
from tunesmith.evaluate.markdown import escaped, fenced
from tunesmith.evaluate.report.charts import NARROW, WIDE, Mark, deltas, forest
from tunesmith.evaluate.report.figures import Value, shown
from tunesmith.evaluate.report.result import told
from tunesmith.evaluate.report.rows import TEXT_LIMITS, row_block, text_limit
from tunesmith.evaluate.results import read_result
from tunesmith.evaluate.section import Section
from tunesmith.evaluate.statistics import wilson

pytestmark = pytest.mark.usefixtures("few_questions")


def result(figures: Path) -> Any:
    found = read_result(figures)
    assert found is not None
    (part,) = told(found)
    return part


def test_every_figure_has_its_n_and_every_estimate_its_interval(tmp_path: Path) -> None:
    part = result(made_result(tmp_path))
    figures = {figure.name: figure for figure in part.figures}
    assert list(figures)[:5] == ["loss", *NAMES]
    assert {figure.n for figure in figures.values()} == {60}
    for name in (*NAMES, "mean length", "empty answers", "cut at the limit"):
        for side in (figures[name].a, figures[name].b):
            assert side is not None
            assert side.low is not None
            assert side.low <= side.value <= side.high, name
    # Ten of sixty answers are empty, twelve cut; rows' own intervals are Wilson's.
    assert (figures["empty answers"].b.value, figures["cut at the limit"].b.value) == (10, 12)
    assert figures["empty answers"].b.ends == tuple(60 * end for end in wilson(10, 60))
    assert figures["loss"].counts == (60, 0, 0)
    assert figures["f1_char"].counts == (20, 0, 40)
    assert part.primary == "f1_char"
    assert shown(Value(0.25, 0.1, 0.4), sign=True) == ("+0.250", "[+0.100, +0.400]")
    assert shown(Value(3, 0.6, 8.4), whole=True, n=60) == ("3 (5 %)", "[1 %, 14 %]")


def test_rows_of_documents_get_no_interval_that_takes_them_for_independent(tmp_path: Path) -> None:
    figures = made_result(tmp_path)
    file = figures.with_suffix(".jsonl")
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    lines = [{**line, "document": f"d{at % 7}"} for at, line in enumerate(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept = {figure.name: figure for figure in result(figures).figures}
    assert (kept["empty answers"].b.low, kept["mean length"].b.low) == (None, None)
    assert kept["f1_char"].b.low is not None  # measured over documents before


def test_groups_have_both_sides_with_intervals(tmp_path: Path) -> None:
    groups = {(group.column, group.metric): group for group in result(made_result(tmp_path)).groups}
    assert set(groups) == {("form", name) for name in NAMES}
    (name, seven), (_, five) = groups["form", "f1_char"].figures
    assert (name, seven.n, five.n) == ("七言", 20, 40)
    assert seven.b.value == pytest.approx(1.0)  # every third row is right, and that is a 七言
    assert None not in (seven.a.low, seven.b.low, seven.difference.low)


def test_a_pair_of_several_has_its_own_answers(tmp_path: Path) -> None:
    figures = made_result(tmp_path, keys=["a", "c"])
    file = figures.with_suffix(".jsonl")
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for line in lines:
        line["c"] = {**line["b"], "prediction": "third"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {row["b"]["prediction"] for row in result(figures).rows} == {"third"}


def test_changes_count_by_which_way_is_better(tmp_path: Path) -> None:
    changes = {one.name: one for one in result(made_result(tmp_path)).changes}
    assert changes["loss"].counts == (0, 0, 60)
    assert changes["loss"].spread == (-1.0, -1.0, -1.0)
    assert changes["f1_char"].counts == (0, 40, 20)
    assert changes["length"].counts[1] == 20  # lower, the same, higher


def test_no_line_runs_through_a_word() -> None:
    """On a phone labels stand above the intervals: lines are beside the intervals alone."""
    marks = [Mark(name, 30, Value(0.1, -0.1, 0.3), "better") for name in ("f1_char", "exact_match", "chrf")]
    for width in (NARROW, WIDE):
        drawn = str(forest(marks, width=width, title="t"))
        lines = [
            tuple(map(float, ends))
            for ends in re.findall(
                r'<line class="(?:zero|grid)" x1="(.+?)" x2=".+?" y1="(.+?)" y2="(.+?)"', drawn
            )
        ]
        words = re.findall(
            r'<text(?: class="\w+")? x="(.+?)" y="(.+?)"(?: text-anchor="(\w+)")?>(.+?)</text>', drawn
        )
        assert len(words) == 2 * len(marks) + len({x for x, _, _ in lines})
        for left, baseline, anchor, text in words:
            wide = 7.0 * len(text)  # more than the font's
            first = float(left) - {"end": wide, "middle": wide / 2}.get(anchor, 0.0)
            over = float(baseline) - 10, float(baseline) + 3
            hit = [x for x, y1, y2 in lines if first < x < first + wide and y1 < over[1] and y2 > over[0]]
            assert hit == [], (width, text)


def test_charts_are_numbers_and_words() -> None:
    marks = [Mark('<b>"x"</b>' * 4, 7, Value(0.2, -0.1, 0.5), "better"), Mark("y", 8, Value(0.0))]
    svg = str(forest(marks, width=340, title="t"))
    assert "<b>" not in svg
    assert "(n = 7)" in svg
    assert len(set(re.findall(r'class="zero" x1="(.+?)"', svg))) == 1
    values = [0.0] * 5 + [0.1, 0.2, -0.3] + [i / 100 for i in range(1, 30)]
    svg = str(deltas(values, "lower", width=760, title="t"))
    assert ">0: 5<" in svg
    told = svg.partition("<desc>")[2].partition("</desc>")[0]
    assert sum(int(part.rpartition(": ")[2]) for part in told.split("; ")) == len(values)
    # Less is better: what rose is worse.
    assert svg.count('class="bar worse"') > svg.count('class="bar better"') >= 1


def test_texts_are_shortened_where_there_are_very_many() -> None:
    row = {"id": "a/b.json:3", "prompt": "長" * 2000, "prediction": "x", "references": []}
    assert [text_limit([row] * n) for n in (10, 5000, 20_000)] == list(TEXT_LIMITS)
    block = row_block([row] * 20_001)
    assert (block["left_out"], len(block["rows"])) == (1, 20_000)
    assert block["rows"][0]["prompt"] == ["長" * 150, 1850]
    assert block["rows"][0]["id"] == "b.json:3"


def test_markdown_in_two_languages(tmp_path: Path) -> None:
    figures = made_result(tmp_path, notes=["The sampling settings differ."])
    english, chinese = tunesmith.report_text(figures), tunesmith.report_text(figures, language="zh")
    assert english.startswith("<!-- tunesmith report -->\n# base → runs/tang-1\n")
    for words in ("## Before and after · test.json", "| figure | n | A [95 %] |", "The sampling settings"):
        assert words in english, words
    for words in (
        "## 前后对比 · test.json",
        "| 字符 F1 f1_char | 60 |",
        "两边的采样设置不同。",
        "看不出差别",
    ):
        assert words in chinese, words
    assert "### Rows (20 / 60)" in english
    assert f"```text\n{HOSTILE}\n```" in english
    assert "<script" not in outside(english)


def test_markdown_stays_text() -> None:
    assert escaped("a|b") == "a\\|b"
    assert escaped("[0.1, 0.2] f1_char −3") == "[0.1, 0.2] f1_char −3"
    assert escaped("<b>&") == "&lt;b>&amp;"
    assert escaped("[x](javascript:y)") == "\\[x]\\(javascript:y)"
    assert escaped("# a\nb") == "\\# a b"
    lines = list(fenced("a\n````\nb"))
    assert (lines[1], lines[3]) == ("`````text", "`````")


def test_json_has_the_same_figures_and_all_rows(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    made_result(run.eval)
    content = json.loads(tunesmith.report_text(run, "json"))
    assert (content["kind"], content["name"], content["training"]["steps"]) == ("report", "tang-1", 40)
    (only,) = content["results"]
    figures = {figure["name"]: figure for figure in only["figures"]}
    assert figures["f1_char"]["difference"]["low"] > 0
    assert (figures["loss"]["n"], figures["loss"]["better"], len(only["rows"])) == (60, "lower", 60)
    assert only["groups"][0]["values"]["七言"]["n"] == 20


def test_sections_are_shown_whoever_found_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(_: Any) -> list[Section]:
        return [Section("Learnt by heart", ("3 rows.",), ("row", "text"), (("1", HOSTILE),))]

    monkeypatch.setattr(section_sources, "SOURCES", (found,))
    figures = made_result(tmp_path)
    assert "### Learnt by heart\n\n3 rows.\n\n| row | text |" in tunesmith.report_text(figures)
    page = tunesmith.report_text(figures, "html")
    assert "<h3>Learnt by heart</h3>" in page
    assert "<script>document" not in page
    (only,) = json.loads(tunesmith.report_text(figures, "json"))["results"]
    assert only["sections"][0]["rows"] == [["1", HOSTILE]]


def test_where_a_report_goes_and_what_it_never_replaces(tmp_path: Path) -> None:
    figures = made_result(tmp_path / "eval")
    assert tunesmith.report(figures) == tmp_path / "eval/test.report.html"
    assert tunesmith.report(figures.with_suffix(".jsonl")) == tmp_path / "eval/test.report.html"
    assert tunesmith.report(figures, tmp_path / "x.md").read_text("utf-8").startswith("<!-- tunesmith")
    for form in ("html", "md", "json"):
        again = [tunesmith.report(figures, tmp_path / f"again.{form}") for _ in range(2)]  # its own, anew
        assert again[0].stat().st_size > 1000
    before = figures.read_bytes()
    with pytest.raises(UsageError, match="isn't a report"):
        tunesmith.report(figures, figures, format="html")
    assert figures.read_bytes() == before
    with pytest.raises(UsageError, match="is a folder"):
        tunesmith.report(figures, tmp_path)
    write_json(tmp_path / "rows.json", [{"instruction": "x", "output": "y"}])
    with pytest.raises(UsageError, match="it isn't a result"):
        tunesmith.report(tmp_path / "rows.json")
    with pytest.raises(RunError, match="isn't the folder of a run"):
        tunesmith.report(tmp_path / "nothing")
