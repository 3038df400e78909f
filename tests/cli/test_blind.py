"""`tunesmith blind` as a person runs it, with tiny models and with files."""

# ruff: noqa: F401, F811 - fixtures are imported by their names

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_eval import Run, tunesmith
from tests.evaluate.blind.made_test import likes_b, made_test, rate, saved_file
from tests.evaluate.conftest import place, write_rows
from tunesmith.evaluate.blind.folder import open_test
from tunesmith.rundir import read_jsonl

FEW = ("max_new_tokens=8", "temperature=1.5", "seed=3", "--dtype", "fp32")


def test_two_models_from_drawing_to_the_report(tunesmith: Run, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    words = (
        "blind",
        "new",
        "qwen2",
        "runs/lora",
        "--data",
        "valid.jsonl",
        "--items",
        "6",
        "--output",
        str(folder),
    )
    code, out, err = tunesmith(*words, *FEW)
    assert (code, out.strip()) == (0, str(folder))
    assert "6 answers by qwen2" in err
    assert "1 of them again with sides swapped" in err
    test = open_test(folder)
    answers = {line["id"]: line["prediction"] for line in read_jsonl(test.sealed / "b.jsonl")}
    assert len(answers) == 6
    # As if it had been killed while the second model answered: the same words go on, with the same draw.
    whole = (test.sealed / "b.jsonl").read_bytes()
    (test.sealed / "b.jsonl").write_bytes(whole[: len(whole) * 2 // 3])
    for file in (test.test_file, test.key_file):
        file.unlink()
    assert "isn't made yet" in tunesmith("blind", "serve", str(folder))[2]
    code, _, err = tunesmith(*words, *FEW)
    assert code == 0
    assert "answers by runs/lora" in err
    assert "answers by qwen2" not in err
    assert (test.sealed / "b.jsonl").read_bytes() == whole
    rate(test, "李雷", lambda *_: "tie")
    code, out, _ = tunesmith("blind", "report", str(folder), "--json")
    report = json.loads(out)
    assert code == 0
    assert {row["row"]: row["b"] for row in report["rows"]} == answers
    assert (report["a"]["model"], report["b"]["model"]) == ("qwen2", "runs/lora")
    assert report["settings"]["temperature"] == 1.5


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (5, "That is too few: 5 votes can't show a difference"),
        (6, "if none of 6 is a tie, 6 wins are needed"),
        (15, "if none of 15 is a tie, 12 wins are needed"),
        (20, ""),
    ],
)
def test_how_many_wins_a_small_test_takes(tunesmith: Run, tmp_path: Path, pairs: int, said: str) -> None:
    for side in "ab":
        rows = [{"id": str(n), "prompt": f"问{n}", "prediction": f"{side}{n}"} for n in range(pairs)]
        write_rows(tmp_path / f"{side}.jsonl", rows)
    files = [str(tmp_path / f"{side}.jsonl") for side in "ab"]
    code, _, err = tunesmith("blind", "new", *files, "--output", str(tmp_path / "test"))
    assert code == 0, err
    assert said in err
    assert said or "few" not in err


def test_a_report_in_the_terminal(tunesmith: Run, tmp_path: Path) -> None:
    test = made_test(tmp_path, 20)
    code, out, err = tunesmith("blind", "page", str(test.path))
    assert (code, out.strip()) == (0, str(test.page_file))
    assert f"tunesmith blind report {test.path} --ratings FILE" in err
    file = saved_file(test, "韓梅梅", likes_b, tmp_path / "r.json")
    rate(test, "李雷", likes_b)
    code, out, err = tunesmith("blind", "report", str(test.path), "--ratings", str(file))
    assert code == 0
    assert err.startswith("This report unseals the test")
    assert "A = plain-base-7b,  B = runs/secret-tuned" in out
    assert "B is preferred." in out
    assert "15 of 20 for p < 0.05" in out
    assert "Krippendorff's alpha" not in out  # both said B throughout: there is nothing to agree on
    assert str(test.report_file) in err
    assert "unseals" not in tunesmith("blind", "report", str(test.path))[2]
    assert tunesmith("blind", "page", str(test.path))[0] == 1
    assert tunesmith("blind", "serve", str(test.path))[0] == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("new", "runs/lora", "--data", "valid.jsonl"), 2, "/qwen2 runs/lora --data FILE"),
        (("new", "a", "b"), 2, "There are no prompts to ask a and b"),
        (("new", "a.jsonl", "b.jsonl"), 1, "There is no file a.jsonl"),
        (("new", "qwen2", "runs/lora", "--data", "valid.jsonl", "temprature=1"), 2, "temperature"),
        (
            ("new", "a", "b", "--data", "valid.jsonl", "num_return_sequences=2", "temperature=1"),
            2,
            "several answers",
        ),
        (("new", "qwen2", "runs/lora", "--data", "none.jsonl"), 1, "none.jsonl"),
        (("new", "qwen2", "runs/lora", "--data", "valid.jsonl", "--items", "0"), 2, "items"),
        (("serve", "nowhere"), 1, "nowhere isn't the folder of a blind test"),
        (("page", "runs/lora"), 1, "runs/lora isn't the folder of a blind test"),
        (("report", "nowhere"), 1, "nowhere isn't the folder of a blind test"),
    ],
)
def test_wrong_words(tunesmith: Run, place: Path, words: tuple[str, ...], code: int, text: str) -> None:
    ended, out, err = tunesmith("blind", *words)
    assert (ended, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
    assert not (place / "blind").exists()
