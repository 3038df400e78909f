"""`tunesmith data check` and `data show` as a person runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_tiny
from tunesmith.cli.main import main

TANG = Path(__file__).parents[2] / "examples" / "tang"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `tunesmith data WORDS`: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", "data", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_check_tells_format_counts_and_a_sample(run: Any) -> None:
    code, out, _ = run("check", TANG / "train.json", TANG / "valid.json")
    assert code == 0
    assert "alpaca, because every row has instruction and output" in out
    assert "4,000: 4,000 good" in out
    assert "user: 下面是一首唐詩絕句的前兩句" in out
    assert str(TANG / "valid.json") in out


def test_check_lists_bad_rows_and_ends_with_1(run: Any, tmp_path: Path) -> None:
    rows = tmp_path / "詩 rows.jsonl"
    rows.write_text(
        '{"instruction": "[bold]q", "output": "a"}\n' * 2 + '{"instruction": "q", "output": 42}\n{"x"'
    )
    code, out, err = run("check", rows, tmp_path / "none.csv")
    assert code == 1
    assert f"{rows}:3: output is a number (42), not text" in out
    assert f"{rows}:4: column 5: " in out
    assert "4: 2 good, 2 bad" in out
    assert "[bold]q" in out
    assert "1 rows repeat" in out
    assert "There is no file" in out
    assert "bad_rows=drop" in err


def test_check_as_one_json_object(run: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "詩"}\n{"text": ""}\n{"text": "b", "note": 1}\n')
    code, out, _ = run("check", rows, tmp_path / "none.csv", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["rows"], len(report["errors"])) == (1, False, 3, 1)
    (summary,) = report["files"]
    assert (summary["format"], summary["good"], summary["unused_columns"]) == ("text", 2, ["note"])
    assert summary["sample"] == [{"role": "text", "content": "詩"}]
    assert report["bad_rows"][0]["origin"] == f"{rows}:2"
    code, out, _ = run("check", TANG / "train.json", "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_check_a_name_of_dataset_info(run: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"q": "a", "a": "b"}]')
    entry = {"file_name": "rows.json", "columns": {"prompt": "q", "response": "a"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    code, out, _ = run("check", "mine", "--info", tmp_path / "dataset_info.json")
    assert code == 0
    assert "dataset_info.json says so for 'mine'" in out
    code, _, err = run("check", "mien", "--info", tmp_path / "dataset_info.json")
    assert code == 2
    assert "did you mean 'mine'?" in err
    entry["file_name"] = "rws.json"
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    code, out, err = run("check", "mine", "--info", tmp_path / "dataset_info.json")
    assert code == 1
    assert "rws.json" in out + err
    assert "did you mean 'rows.json'" in out + err
    assert "the folder you are in" not in out + err


def test_show_marks_what_is_trained_on(run: Any, tmp_path: Path) -> None:
    model = save_tiny("qwen2", tmp_path / "model")
    code, out, err = run(
        "show", TANG / "train.json", "--model", model, "--rows", 2, "--from", 3, "max_length=2000"
    )
    assert code == 0, err
    row = json.loads((TANG / "train.json").read_text(encoding="utf-8"))[2]
    assert f"[[{row['output']}" in out
    assert f"[[{row['input']}" not in out
    assert "2 of 4000 rows" in err
    assert "can't be trained on whole" not in err
    code, _, err = run("show", TANG / "train.json", "--model", model, "max_lenth=5")
    assert code == 2
    assert "max_length" in err
    assert "A setting is wrong on the command line" in err
    code, _, err = run("show", TANG / "train.json", "--model", model, "--from", 5000)
    assert code == 1
    assert "4000 good rows" in err


def test_show_tells_of_rows_that_it_does_not_show(run: Any, tmp_path: Path) -> None:
    model = save_tiny("qwen2", tmp_path / "model")
    rows = [{"instruction": "q", "output": "a"}] * 9 + [{"instruction": "long " * 99, "output": "answer"}]
    rows.append({"instruction": "q", "output": "ends <|im_end|> early"})
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    code, _, err = run("show", file, "--model", model, "-n", 1, "max_length=64", "too_long=truncate_left")
    assert code == 0
    assert "2 rows can't be trained on whole" in err
    assert f"{file}:10" in err or "row 10" in err
    assert "<|im_end|>" in err
