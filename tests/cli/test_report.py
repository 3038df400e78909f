"""`tunesmith report` as a person runs it, and what `runs show` and `blind report` have of the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluate.blind.made_test import HOSTILE, likes_b, made_test, rate
from tests.evaluate.made_result import made_result, outside
from tests.evaluate.made_run import made_run
from tunesmith.evaluate.blind.report import blind_report

MAIN = "import sys; from tunesmith.cli.main import main; main()"


def tunesmith(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *words], cwd=cwd, capture_output=True, text=True, env=environment
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """runs/tang-1 with a comparison, and another one in eval/."""
    made_result(made_run(tmp_path / "runs" / "tang-1").eval, 12)
    made_result(tmp_path / "eval", 12)
    return tmp_path


def test_a_run_and_a_result(here: Path) -> None:
    done = tunesmith("report", "runs/tang-1", cwd=here)
    assert (done.returncode, done.stdout) == (0, "runs/tang-1/report.html\n")
    assert "before you send it" in done.stderr
    assert tunesmith("report", "eval/test.json", cwd=here).stdout == "eval/test.report.html\n"
    page = (here / "eval/test.report.html").read_text(encoding="utf-8")
    assert "评测报告" in page
    assert "Use the result" not in page


def test_markdown_and_json_on_stdout_and_by_the_ending(here: Path) -> None:
    done = tunesmith(
        "report", "eval/test.json", "--format", "md", "--output", "-", "--language", "zh", cwd=here
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "## 前后对比 · test.json" in done.stdout
    assert tunesmith("report", "eval/test.json", "--output", "x.json", cwd=here).returncode == 0
    assert json.loads((here / "x.json").read_text("utf-8"))["results"][0]["n"] == 12


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "isn't the folder of a run"),
        (["eval"], "isn't the folder of a run"),
        (["eval/test.json", "--output", "eval/test.jsonl"], "isn't a report"),
        (["eval/test.json", "--output", "eval"], "is a folder"),
        (["eval/test.json", "--format", "pdf"], "pdf"),
        (["eval/test.json", "--language", "fr"], "fr"),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_message(here: Path, words: list[str], told: str) -> None:
    done = tunesmith("report", *words, cwd=here)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_show_has_the_groups(here: Path) -> None:
    done = tunesmith("runs", "show", "tang-1", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "form = 七言" in done.stdout
    assert "B − A f1_char [95 %]" in done.stdout


def test_a_blind_test_as_markdown(tmp_path: Path) -> None:
    test = made_test(tmp_path, 10, b=lambda i: f"乙{i}" + HOSTILE)
    rate(test, "李雷", likes_b)
    (tmp_path / "mine.txt").write_text("mine")
    refused = tunesmith("blind", "report", "test", "--output", "mine.txt", cwd=tmp_path)
    assert (refused.returncode, test.unsealed()) == (2, None)  # nothing is unsealed by a mistake
    done = tunesmith("blind", "report", "test", "--output", "votes.md", cwd=tmp_path)
    assert done.returncode == 0
    text = (tmp_path / "votes.md").read_text(encoding="utf-8")
    assert "**B is preferred**" in text
    assert "| 李雷 | 11/11 | 10 | 0 | 0 |" in text
    assert "李雷 B" in text
    assert "<script" not in outside(text)
    done = tunesmith("blind", "report", "test", "--output", "-", "--language", "zh", cwd=tmp_path)
    assert "**更偏好 B**" in done.stdout


def test_a_run_s_report_has_its_blind_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = made_run(Path("runs/secret-tuned"))  # B of the test
    test = made_test(Path("blind"), 10)
    rate(test, "韓梅梅", likes_b)
    blind_report(test.path)
    page = run.report_file.read_text(encoding="utf-8")  # written anew by the blind test's report
    for words in ("Blind test by people", "B is preferred", "韓梅梅", "Wilson"):
        assert words in page, words
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = tunesmith("report", str(run.path.resolve()), "--output", "-", "--format", "md", cwd=elsewhere)
    assert "**B is preferred**" in done.stdout
    other = made_run(Path("runs/other"))
    done = tunesmith("report", str(other.path), "--output", "-", "--format", "md", cwd=tmp_path)
    assert "preferred" not in done.stdout
