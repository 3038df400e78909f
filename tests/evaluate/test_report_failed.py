"""Rows whose call failed are told as that; several comparisons in one report say whose each is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tunesmith
from tests.evaluate.browser import NEEDED, chromium, opened
from tests.evaluate.conftest import rows, write_rows
from tests.evaluate.made_result import made_result
from tests.evaluate.made_run import Scripted, couplets, made_run
from tests.evaluate.test_endpoints import right
from tests.openai_server import Call, Odd, served
from tunesmith.cli.findings import tell_findings
from tunesmith.cli.runs import app as runs_app
from tunesmith.disk import write_json
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.results import pairs


@pytest.fixture
def failed_first(tmp_path: Path) -> Path:
    """Figures of an endpoint that fails on the very first row and on no other."""
    data = str(write_rows(tmp_path / "valid.jsonl", rows(8)))
    no = Odd(400, error="too long for me")
    with served(lambda call: no if call.asked == "問題0？" else right(call)) as server:
        return tunesmith.evaluate(server.name, data, output=tmp_path / "out.jsonl").file


def test_a_failed_row_is_no_empty_answer_and_hides_no_scores(failed_first: Path) -> None:
    page = tunesmith.report_text(failed_first, "html")
    first = page[page.index('<div class="list">') : page.index("問題1？")]
    assert "no answer, the call failed" in first
    assert "too long for me" in first
    assert ">empty<" not in first
    block = json.loads(page.split('<script type="application/json">')[1].split("</script>")[0])
    assert [one["name"] for one in block["measures"]] == ["f1_char", "exact_match"]
    assert block["rows"][0]["failed"] == ["HTTP 400: too long for me"]
    assert block["rows"][1]["failed"] == [None]
    markdown = tunesmith.report_text(failed_first, language="zh")
    assert "回答 (没有回答：调用失败: HTTP 400: too long for me)" in markdown
    assert "在 8 条数据中有 1 条没有答上来" in markdown


@NEEDED
def test_the_page_finds_failed_rows_and_counts_them_as_no_empty_ones(failed_first: Path) -> None:
    file = tunesmith.report(failed_first)
    with chromium() as browser, opened(browser, file) as page:
        show = page.get_by_label("Show")
        show.select_option("empty")
        assert page.locator(".answer").count() == 0
        show.select_option("failed")
        assert page.locator(".answer").count() == 1
        assert "HTTP 400: too long for me" in page.locator(".answer").inner_text()
        assert page.errors == []


def test_of_three_sides_each_pair_says_what_was_left_out(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(8)))

    def reply(call: Call) -> str | Odd:
        broken = (call.body["model"], call.asked) == ("b", "問題2？")
        return Odd(400, error="no") if broken else right(call)

    with served(reply) as server:
        names = [f"{server.url}#{name}" for name in "abc"]
        result = tunesmith.compare(*names, data=data, output=tmp_path / "out.jsonl")
    for pair in pairs(result.content):
        assert any("failed on 1 row of 8" in note for note in pair["notes"])
        assert "Compared are the 7 rows that all answered." in pair["notes"]
    assert "failed on 1 row of 8" in tunesmith.report_text(result.file)


def test_cards_of_several_comparisons_say_whose_they_are(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    made_result(run.eval)
    assert 'class="whose"' not in tunesmith.report_text(run, "html")
    made_result(run.eval / "more").rename(run.eval / "second.json")
    page = tunesmith.report_text(run, "html")
    assert page.count('<div class="detail whose">base → runs/tang-1</div>') == 6


def test_of_three_sides_each_pair_has_its_own_letters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "tang-1")
    asked = [replace(row, meta={"groups": {"form": "五言"}}) for row in couplets(6)]
    sides = [Scripted(name, lambda _: "一") for name in ("base", "other", "tuned")]
    metrics = [METRICS["f1_char"]]
    result = compare(*sides[:2], asked, metrics, output=run.eval / "x.jsonl", more=sides[2:]).to_json()
    write_json(run.eval / "x.json", {**result, "data": "x.json"})
    shown = CliRunner().invoke(runs_app, ["show", str(run.path)]).stdout
    # The run's own comparison comes first, under the letters of the comparison.
    assert 0 < shown.index("A = base,  C = tuned") < shown.index("A = base,  B = other")
    assert "C − A f1_char" in shown
    *_, last = pairs({**result, "findings": {"b": "tuned", "advice": ["forgets"]}})
    tell_findings(last, whole=False)
    told = capsys.readouterr().out
    assert told.index("Here A = base,  C = tuned") < told.index("It forgets what it knew")


def test_a_page_tells_its_own_run_first_and_by_the_same_letters(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    asked = [replace(row, meta={"groups": {"form": "五言"}}) for row in couplets(8)]
    answers = {"base": "一", "other": "二", "tuned": "疏松影落空壇靜，細草春香小洞幽。"}
    a, b, c = (Scripted(name, lambda _, said=said: said) for name, said in answers.items())  # type: ignore[misc]
    result = compare(a, b, asked, [METRICS["f1_char"]], output=run.eval / "x.jsonl", more=[c]).to_json()
    write_json(run.eval / "x.json", {**result, "data": "x.json"})
    told = tunesmith.report_text(run)
    own, other = told.index("Before and after · x.json · base → tuned"), told.index("base → other")
    assert own < other
    assert "A = base, C = tuned" in told[own:other]
    assert "| C − A [95 %] |" in told[own:other]
    assert "\nC\n" in told[own:other]  # a row's answers
    assert not re.search(r"\bB\b", told[own:other].replace("F1", ""))
    assert "A = base, B = other" in told[other:]
    page = tunesmith.report_text(run, "html")
    assert page.index("base → tuned</h2>") < page.index("base → other</h2>")
    cards = page[page.index('class="cards"') : page.index("</header>")]
    assert cards.count("x.json, n = 8") == 1, "the other run's figures are none of this run's"
    assert "whose" not in cards
    letters = [
        json.loads(block.partition("<")[0])["letters"] for block in page.split('application/json">')[1:]
    ]
    assert letters == [["A", "C"], ["A", "B"]]
    assert [one["letters"] for one in json.loads(tunesmith.report_text(run, "json"))["results"]] == letters
    # The report of the result alone tells all of it, in its order.
    alone = tunesmith.report_text(run.eval / "x.json", "html")
    assert alone.index("base → other</h2>") < alone.index("base → tuned</h2>")
    assert "A = base · B = other · C = tuned" in alone
