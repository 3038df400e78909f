"""What a judge and a public benchmark found stands in a run's report: page, Markdown, JSON, terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tunesmith
from tests.evaluate.judge.test_judging import answers, of_content
from tests.evaluate.made_run import made_run
from tests.openai_server import Call, Odd, Reply, served
from tunesmith.cli.runs import app as runs_app
from tunesmith.disk import write_json
from tunesmith.errors import UsageError
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.results import read_results, title
from tunesmith.evaluate.section_sources import sections
from tunesmith.rundir import RunDir

BENCHMARK: dict[str, Any] = {
    "kind": "benchmark",
    "model": "runs/tang-1",
    "tasks": {
        "hellaswag": {
            "metrics": {"acc": {"value": 0.3125, "stderr": 0.0328}, "acc_norm": {"value": 0.36}},
            "n": 200,
            "shots": 0,
        }
    },
    "harness": "0.4.12",
    "settings": {"shots": None, "limit": 200, "chat": True, "seed": 1234},
    "predictions": "eval/hellaswag.benchmark-0.jsonl",
}
B_WINS = of_content(lambda first, _: first.startswith("乙"))


def graded(call: Call) -> str:
    names = ("正确", "切题", "完整", "清楚")
    scores = {name: {"reason": "因为", "score": 5 if "乙" in call.asked else 2} for name in names}
    return json.dumps(scores, ensure_ascii=False)


def refused_once(call: Call) -> str | Odd:
    return Odd(400, error="too long") if "問題3：" in call.asked else str(B_WINS(call))


def judged(run: RunDir, reply: Reply, name: str, **options: Any) -> dict[str, Any]:
    a = answers(run.path / "a.jsonl", lambda i: f"甲{i}")
    b = answers(run.path / "b.jsonl", lambda i: f"乙{i}")
    with served(reply) as server:
        output = run.eval / f"{name}.jsonl"
        return tunesmith.judge(a, b, judge=server.name, output=output, **options).content


def test_a_judgement_writes_the_run_s_report_anew(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    judged(run, refused_once, "pairs")
    page = run.report_file.read_text("utf-8")
    assert "B is preferred." in page
    assert "更偏好 B。" in page
    assert "调用评判模型失败" in page
    assert "乙23" in page  # rows are there, with both answers
    markdown = tunesmith.report_text(run, "md", language="zh")
    assert "## 模型评判" in markdown
    assert "| 数据行 | B 23，A 0，平 0（下面不计平局） |" in markdown
    assert "**1.** 提示" in markdown


def test_grades_are_a_part_of_all_forms(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    judged(run, graded, "grades", rubric="builtin")
    (only,) = json.loads(tunesmith.report_text(run, "json"))["results"]
    assert (only["kind"], only["n"], len(only["rows"])) == ("judgement", 24, 24)
    assert only["found"]["criteria"]["overall"]["b"]["value"] == 5.0
    assert only["rows"][0]["b"]["scores"]["正确"] == 5
    assert only["sections"][0]["title"] == "Scores by a rubric, from 1 to 5"
    english = tunesmith.report_text(run)
    assert "| overall | 2.00 | 5.00 |" in english
    assert "| 总分 | 2.00 | 5.00 |" in tunesmith.report_text(run, language="zh")


def test_a_benchmark_is_shown_everywhere(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    run.eval.mkdir()
    write_json(run.eval / "hellaswag.benchmark-0.json", BENCHMARK)
    shown = CliRunner().invoke(runs_app, ["show", str(run.path)]).stdout
    assert "lm-evaluation-harness 0.4.12" in shown
    assert "0.3125" in shown
    as_json = json.loads(CliRunner().invoke(runs_app, ["show", str(run.path), "--json"]).stdout)
    assert as_json["results"][0]["tasks"] == BENCHMARK["tasks"]
    page = tunesmith.report_text(run, "html")
    assert "hellaswag" in page
    assert "公开基准" in page
    assert "| hellaswag | acc | 0.3125 | 0.0328 | 200 |" in tunesmith.report_text(run)


def test_one_judgement_alone_is_reported(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    judged(run, B_WINS, "pairs")
    file = tunesmith.report(run.eval / "pairs.json", tmp_path / "judged.html")
    assert "B is preferred." in file.read_text("utf-8")


def test_a_damaged_judgement_is_named_and_not_passed_over(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    content = judged(run, B_WINS, "pairs")
    del content["calls"]
    write_json(run.eval / "pairs.json", content)
    (found,) = read_results(run)
    assert found["kind"] == "damaged"
    assert "'calls' is missing" in found["error"]
    with pytest.raises(UsageError, match="'calls' is missing"):
        tunesmith.report(run.eval / "pairs.json")


@pytest.mark.parametrize("name", ["pairs", "grades", "benchmark"])
def test_every_word_of_ours_has_a_chinese_one(tmp_path: Path, name: str) -> None:
    run = made_run(tmp_path / "tang-1")
    if name == "benchmark":
        run.eval.mkdir()
        write_json(run.eval / "x.json", BENCHMARK)
    else:
        judged(run, *((refused_once, name) if name == "pairs" else (graded, name)), **(
            {"rubric": "builtin"} if name == "grades" else {}
        ))  # fmt: skip
    (result,) = read_results(run)
    assert title(result)
    own = {"hellaswag", "acc", "acc_norm", "A", "B", "n", "B − A [95 %]"}
    for section in sections(result):
        words = [section.title, *section.sentences, *section.columns, *(row[0] for row in section.rows)]
        english = [word for word in words if word and word not in own and word == in_chinese(word)]
        assert [word for word in english if word.isascii()] == []
