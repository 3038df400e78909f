"""`tunesmith compare` as a person runs it."""

# ruff: noqa: F401, F811 - fixtures are imported by their names

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.test_eval import FEW, Run, tunesmith
from tests.evaluate.conftest import place
from tests.evaluate.made_run import Scripted, couplets
from tunesmith.cli.compare import show_rows
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import METRICS
from tunesmith.rundir import read_jsonl


def test_a_run_alone_is_compared_with_its_base(tunesmith: Run, place: Path) -> None:
    code, out, err = tunesmith("compare", "runs/lora", "--data", "valid.jsonl", "--show", "2", *FEW)
    assert code == 0
    title = next(line for line in out.splitlines() if "n = 8" in line)
    assert title.endswith("B = runs/lora")
    loss = next(line for line in out.splitlines() if line.startswith("loss"))
    assert loss.endswith("better")
    assert "問題0？" in out
    assert "答案是0，好。" in out
    assert "Report:      runs/lora/report.html" in err
    assert "valid.jsonl" in (place / "runs/lora/report.html").read_text(encoding="utf-8")
    assert len(read_jsonl(place / "runs/lora/eval/valid.jsonl")) == 8


def test_json_of_two_models(tunesmith: Run, tmp_path: Path) -> None:
    output = str(tmp_path / "both.jsonl")
    words = ("compare", "qwen2", "runs/lora", "--data", "valid.jsonl", "--output", output, "--json", *FEW)
    code, out, _ = tunesmith(*words)
    result = json.loads(out)
    assert code == 0
    assert (result["a"]["model"], result["b"]["model"], result["n"]) == ("qwen2", "runs/lora", 8)
    assert set(result["metrics"]["f1_char"]) >= {"a", "b", "difference", "wins", "losses", "ties", "verdict"}
    assert result["loss"]["difference"]["high"] < 0
    assert [
        set(line) >= {"id", "prompt", "prediction", "references", "a", "b"}
        for line in read_jsonl(Path(output))
    ]
    assert (tmp_path / "both.json").is_file()


def test_a_run_against_itself_is_a_tie(tunesmith: Run, tmp_path: Path) -> None:
    output = str(tmp_path / "same.jsonl")
    words = ("compare", "runs/lora", "runs/lora", "--data", "valid.jsonl", "--output", output, "--json", *FEW)
    result = json.loads(tunesmith(*words)[1])
    assert result["loss"]["difference"] is None  # no row differs: there is no width to be had
    assert result["metrics"]["f1_char"]["ties"] == 8
    assert result["loss"]["verdict"] == "cannot tell with n = 8"


def test_rows_side_by_side_stay_in_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = Scripted("底模", lambda _: "The lines"), Scripted("微調", lambda c: c.references[0])
    show_rows(
        compare(
            *sides,
            couplets(3),
            [METRICS["f1_char"]],
            output=tmp_path / "c.jsonl",
        ),
        3,
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "石室" in line]
    assert len(lines) == 3
    assert len({cell_len(line[: line.index("坐來")]) for line in lines}) == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("temperature=1", "--data", "valid.jsonl"), 2, "takes one run, or two models or more"),
        (("qwen2", "qwen2", "--with-base", "--data", "valid.jsonl"), 2, "None of these is a run"),
        (("runs/lora", "qwen2", "--with-base", "--data", "valid.jsonl"), 2, "is the base itself"),
        ((*["qwen2"] * 27, "--data", "valid.jsonl"), 2, "27 models are too many"),
        (("qwen2", "--data", "valid.jsonl"), 2, "no base to be compared with"),
        (("runs/lora", "nope", "--data", "valid.jsonl"), 1, "nope"),
        (("runs/lora", "--data", "valid.jsonl", "--limit", "0"), 2, "limit"),
    ],
)
def test_wrong_words(tunesmith: Run, words: tuple[str, ...], code: int, text: str) -> None:
    ended, out, err = tunesmith("compare", *words, "max_new_tokens=2")
    assert (ended, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
