"""What `tunesmith make` says: the account, the estimate, the prompts, and what to do about mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.openai_server import Call, served
from tests.synth.school import by_rule, judging, made, verdict, write_handbook
from tests.warm import Warm

SIZES = ["--size", "130", "--per-chunk", "2"]


def test_the_account_ends_it_and_says_how_to_go_on(tmp_path: Path, warm: Warm) -> None:
    write_handbook(tmp_path, 6)
    (tmp_path / "scan.jpg").write_bytes(b"x")

    def reply(call: Call) -> str:
        if judging(call):
            return verdict(call, grounded=1) if "请假办法" in call.asked else verdict(call)
        return made(call)

    with served(reply) as server:
        words = [
            *("make", "手册.txt", "scan.jpg", "--output", "out/rows.jsonl", *SIZES),
            *("--model", f"{server.url}#maker", "--judge", f"{server.url}#judge"),
            *("--price", "1,2", "--judge-price", "1,1"),
        ]
        done = warm.call(*words, "--max-calls", "30", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "6 waiting for the judge" in done.stdout
        assert (
            "Stopped: --max-calls 30 is reached. The same command with a higher limit goes on." in done.stderr
        )
        assert "Not read: scan.jpg: .jpg isn't a format that is read" in done.stderr
        done = warm.call(*words, cwd=tmp_path)
        assert done.stdout.splitlines() == [
            "1 document -> 12 chunks", "12 chunks -> 24 questions", "24 questions -> 24 answers",
            "24 answers -> 20 kept", "  4 judge: grounded too low", "20 rows: 12 train, 4 valid, 4 test",
            "cost so far: 0.000396",
        ]  # fmt: skip
        assert "making rows (36 calls)" in done.stderr
        assert done.stderr.splitlines()[-1] == "Next: tunesmith data check out/rows.jsonl"
        calls = len(server.calls)
        assert calls == 36
        found = warm.call(*words, "--json", cwd=tmp_path)
        assert json.loads(found.stdout)["account"]["kept"] == {"train": 12, "valid": 4, "test": 4}
        dry = warm.call(*words, "--dry-run", cwd=tmp_path)
        assert "make: " in dry.stdout
        assert "12 calls, 84 tokens read, 36 written (as measured so far)" in dry.stdout
        assert "36 calls made already" in dry.stdout
        assert len(server.calls) == calls


def test_a_dry_run_asks_nobody_and_writes_nothing(tmp_path: Path, warm: Warm) -> None:
    write_handbook(tmp_path, 6)
    nobody = "http://127.0.0.1:9/v1"
    words = [
        *("make", "手册.txt", "--output", "rows.jsonl", *SIZES, "--dry-run"),
        *("--model", f"{nobody}#a", "--judge", f"{nobody}#b", "--price", "1,2"),
    ]
    done = warm.call(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 document, 6 sections, 12 chunks, 12 of them used" in done.stdout
    assert "judge: http://127.0.0.1:9/v1#b: 24 calls" in done.stdout
    assert "without judge, whose price isn't given" in done.stdout
    content = json.loads(warm.call(*words, "--json", cwd=tmp_path).stdout)
    assert [one["calls"] for one in content["calls"]] == [12, 24]
    assert content["calls"][0]["completion_tokens"] == 12 * 2 * 110
    assert [file.name for file in tmp_path.iterdir()] == ["手册.txt"]


def test_nothing_that_came_out_is_a_failure(tmp_path: Path, warm: Warm) -> None:
    write_handbook(tmp_path, 2)
    with served(lambda _: "我不会写 JSON。") as server:
        words = ["--model", f"{server.url}#a", "--no-judge", "--output", "rows.jsonl", *SIZES]
        done = warm.call("make", "手册.txt", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "Error: No row came out." in done.stderr
    assert "4 chunks (qa: the reply was malformed twice)" in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["手册.txt", "--output", "a.jsonl"], "--kind qa needs --model"),
        (["手册.txt", "--output", "a.jsonl", "--model", "x"], "--judge is missing"),
        (["手册.txt", "--output", "a.json", "--kind", "continue"], "its name ends in .jsonl"),
        (
            ["手册.txt", "--output", "a.jsonl", "--kind", "poem"],
            "The kinds are qa, instruct, summary, continue",
        ),
        (["none.txt", "--output", "a.jsonl", "--kind", "continue"], "none.txt"),
        (["--show-prompts", "--kind", "poem"], "There is no kind poem"),
        (["--output", "a.jsonl"], "takes documents and an output"),
        (["手册.txt", "--output", "a.jsonl", "--model", "x", "--no-judge", "temprature=1"], "temprature"),
        (["手册.txt", "--output", "a.jsonl", "--kind", "continue", "--min-score", "9"], "isn't a score"),
        (["手册.txt", "--output", "a.jsonl", "--kind", "continue", "--language", "fr"], "given: fr"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_leave_nothing(
    words: list[str], told: str, tmp_path: Path, warm: Warm
) -> None:
    write_handbook(tmp_path, 1)
    done = warm.call("make", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["手册.txt"]


def test_prompts_are_shown_word_for_word(tmp_path: Path, warm: Warm) -> None:
    with served(by_rule) as server:
        write_handbook(tmp_path, 1)
        words = ["--model", f"{server.url}#a", "--no-judge", "--output", "rows.jsonl", *SIZES]
        warm.call("make", "手册.txt", *words, "--valid", "0", "--test", "0", cwd=tmp_path)
        asked = server.calls[0].asked
    shown = warm.call("make", "--show-prompts", cwd=tmp_path).stdout
    for line in asked.partition("<document>")[0].replace("2 个", "{count} 个").splitlines():
        assert line in shown
    version = json.loads((tmp_path / "rows.report.json").read_text(encoding="utf-8"))["prompts"]["qa.zh"]
    assert f"== qa.zh  (version {version})" in shown
