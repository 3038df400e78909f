"""`tunesmith eval` as a person runs it."""

# ruff: noqa: F401, F811 - fixtures are imported by their names

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluate.conftest import place, write_rows
from tunesmith.cli.main import main
from tunesmith.rundir import read_jsonl

Run = Callable[..., tuple[int, str, str]]
FEW = ("max_new_tokens=5", "--dtype", "fp32")


@pytest.fixture
def tunesmith(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command in the folder of the tiny model and its run; exit code, stdout, stderr."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_json_is_the_documented_object_and_nothing_else(tunesmith: Run) -> None:
    code, out, err = tunesmith("eval", "runs/lora", "--data", "valid.jsonl", "--json", *FEW)
    result = json.loads(out)
    assert code == 0
    assert result["n"] == 8
    assert set(result["metrics"]["f1_char"]) == {"value", "low", "high"}
    assert result["perplexity"] == pytest.approx(2.718281828 ** result["loss"])
    for name in ("loss", "perplexity", "bits_per_byte"):
        bounds = result["intervals"][name]
        assert bounds["value"] == pytest.approx(result[name])
        assert 0 <= bounds["low"] < bounds["value"] < bounds["high"]
    assert result["sampling"] == {"max_new_tokens": 5}
    assert result["data"] == "valid.jsonl"
    assert "8 rows; metrics: f1_char, exact_match." in err
    lines = read_jsonl(Path(result["predictions"]))
    assert len(lines) == 8
    assert set(lines[0]) >= {"id", "prompt", "prediction", "references"}


def test_table_and_files_of_a_run(tunesmith: Run, place: Path) -> None:
    code, out, err = tunesmith("eval", "runs/lora", "--data", "valid.jsonl", "--metrics", "f1_char", *FEW)
    assert code == 0
    assert out.splitlines()[0] == "valid.jsonl, n = 8:  runs/lora"
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["loss", "perplexity", "bits_per_byte"]
    assert all(re.search(r" \[[\d.,]+, [\d.,]+\]$", line) for line in out.splitlines()[1:5])
    assert "exact_match" not in out
    assert "Predictions: runs/lora/eval/valid.eval.jsonl" in err
    assert (place / "runs/lora/eval/valid.eval.json").is_file()
    shown = tunesmith("runs", "show", "lora")[1]
    assert "valid.jsonl, n = 8:  runs/lora" in shown


def test_a_model_without_a_run_leaves_its_files_where_it_says(tunesmith: Run, place: Path) -> None:
    code, _, err = tunesmith("eval", "qwen2", "--data", "valid.jsonl", "--limit", "2", *FEW)
    assert code == 0
    assert "Predictions: eval/qwen2.valid.eval.jsonl" in err
    assert len(read_jsonl(place / "eval/qwen2.valid.eval.jsonl")) == 2


def test_the_same_seed_gives_the_same_answers(tunesmith: Run, tmp_path: Path) -> None:
    def answers(name: str, seed: int) -> list[str]:
        output = str(tmp_path / name)
        words = ("eval", "qwen2", "--data", "valid.jsonl", "--output", output, "temperature=1.5")
        assert tunesmith(*words, f"seed={seed}", *FEW)[0] == 0
        return [line["prediction"] for line in read_jsonl(tmp_path / name)]

    assert answers("a.jsonl", 1) == answers("b.jsonl", 1) != answers("c.jsonl", 2)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("runs/lora", "--data", "nope.jsonl"), 1, "nope.jsonl"),
        (("nope", "--data", "valid.jsonl"), 1, "nope"),
        (("runs/lora", "qwen2", "--data", "valid.jsonl"), 2, "takes one model"),
        (("--data", "valid.jsonl"), 2, "MODEL"),
        (("runs/lora",), 2, "--data"),
        (("runs/lora", "--data", "unanswered.jsonl"), 1, "unanswered.jsonl:2"),
        (("runs/lora", "--data", "valid.jsonl", "--metrics", "f1"), 2, "f1_char"),
        (("runs/lora", "--data", "valid.jsonl", "temprature=1"), 2, "temperature"),
        (("runs/lora", "--data", "valid.jsonl", "do_sample=false", "top_p=0.5"), 2, "do_sample"),
        (("runs/lora", "--data", "valid.jsonl", "num_beams=2", "num_return_sequences=2"), 2, "one is scored"),
        (("runs/lora", "--data", "valid.jsonl", "--references", "short.txt"), 1, "1 answers for 8 prompts"),
        (("runs/lora", "--data", "valid.jsonl", "--output", "valid.json"), 2, "would overwrite valid.jsonl"),
        (("runs/lora", "--data", "valid.jsonl", "--output", "runs"), 2, "is a folder"),
        (("runs/lora", "--data", "valid.jsonl", "--by", "categry"), 1, "no column 'categry'"),
        (("runs/lora", "--data", "valid.jsonl", "--document", "output2"), 1, "no column 'output2'"),
        (("runs/lora", "--data", "valid.jsonl", "--metrics", "choices"), 1, "valid.jsonl:8"),
        (("runs/lora", "--data", "valid.jsonl", "--metric", "regex:("), 2, "isn't a regular expression"),
        (("runs/lora", "--data", "valid.jsonl", "--metric", "mine.py:f"), 2, "there is no file mine.py"),
        (("--predictions", "valid.jsonl"), 1, "no text under `prediction`"),
        (("qwen2", "--predictions", "valid.jsonl", "seed=1"), 2, "neither a model nor sampling"),
        (("--predictions", "valid.jsonl", "--limit", "2"), 2, "--limit takes the first rows of --data"),
        (("--predictions", "valid.jsonl", "--references", "short.txt"), 2, "goes with --data"),
    ],
)
def test_wrong_words_are_one_message_and_leave_nothing(
    tunesmith: Run,
    place: Path,
    words: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    (place / "unanswered.jsonl").write_text('{"instruction": "一", "output": "答"}\n{"instruction": "二"}\n')
    (place / "short.txt").write_text("甲\n")
    before = sorted(place.rglob("*"))
    ended, out, err = tunesmith("eval", *words)
    assert (ended, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
    assert sorted(place.rglob("*")) == before


def test_predictions_are_scored_and_shown_by_group(tunesmith: Run, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    lines = [("甲", "地理"), ("乙", "地理"), ("丙", "歷史")]
    content = [{"id": i, "prediction": a, "references": ["甲"], "科目": c} for i, (a, c) in enumerate(lines)]
    file.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content), encoding="utf-8"
    )
    words = (
        "eval",
        "--predictions",
        str(file),
        "--metrics",
        "exact_match",
        "--metric",
        "bleu",
        "--by",
        "科目",
    )
    code, out, err = tunesmith(*words, "--output", str(tmp_path / "scored"))
    assert code == 0
    assert re.search(r"科目 = 地理 +2 +0\.500 \[", out)
    assert "seconds" not in out
    assert "bleu_zh: BLEU|nrefs:1|" in err
    assert [line["scores"]["exact_match"] for line in read_jsonl(tmp_path / "scored.jsonl")] == [1, 0, 0]
    code, out, _ = tunesmith(*words, "--output", str(tmp_path / "scored"), "--json")
    result = json.loads(out)
    assert result["groups"]["科目"]["歷史"]["n"] == 1
    assert result["signatures"]["bleu_zh"].endswith("version:2.6.0")


def test_predictions_of_the_first_rows_alone(tunesmith: Run, tmp_path: Path) -> None:
    rows = [{"instruction": f"第{i}题？", "output": f"答{i}"} for i in range(4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    lines = [{"predict": f"答{i}", "prompt": f"<user>第{i}题？"} for i in range(2)]
    write_rows(tmp_path / "p.jsonl", lines)
    words = ("--predictions", str(tmp_path / "p.jsonl"), "--data", str(tmp_path / "rows.jsonl"))
    code, _, err = tunesmith("eval", *words)
    assert (code, "--limit 2" in err) == (1, True)
    output = ("--output", str(tmp_path / "scored"))
    code, out, err = tunesmith("eval", *words, "--limit", "2", "--json", *output)
    assert code == 0, err
    assert json.loads(out)["metrics"]["exact_match"]["value"] == 1.0
