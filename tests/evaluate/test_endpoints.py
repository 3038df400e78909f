"""Endpoints in eval, compare and generate: failed rows count in no figure, a kill asks nothing twice."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.evaluate.conftest import rows, write_rows
from tests.openai_server import Call, Odd, served
from tests.warm import Warm
from tunesmith.errors import DataError, GenerateError
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.predicted import read_predictions
from tunesmith.evaluate.report.rows import measures
from tunesmith.rundir import read_jsonl


def right(call: Call) -> str:
    number = int(call.asked.removeprefix("問題").removesuffix("？"))
    return str(rows(number + 1)[number]["output"])


def test_a_failed_row_counts_in_no_figure_and_is_named(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(8)))
    no = Odd(400, error="too long for me")
    with served(lambda call: no if call.asked == "問題3？" else right(call)) as server:
        result = tunesmith.evaluate(server.name, data, output=tmp_path / "out.jsonl")
    assert (result.content["n"], result.content["failed"]) == (7, 1)
    assert result.content["metrics"]["exact_match"]["value"] == 1.0
    (note,) = result.content["notes"]
    assert "failed on 1 row of 8" in note
    assert "3: HTTP 400: too long for me" in note
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert [line["finish"] for line in lines] == ["stop"] * 3 + ["error"] + ["stop"] * 4
    assert result.content["completion_tokens"] == 21
    # Scored again from the file it counts as little.
    questions, predictions = read_predictions(str(tmp_path / "out.jsonl"))
    assert [answer.finish for answer in predictions.answers.values()] == [line["finish"] for line in lines]
    again = tunesmith.evaluate(predictions=str(tmp_path / "out.jsonl"), output=tmp_path / "again.jsonl")
    assert (again.content["n"], again.content["failed"]) == (7, 1)
    assert len(questions.conversations) == 8


def test_the_same_command_asks_the_failed_rows_alone(tmp_path: Path) -> None:
    data, output = str(write_rows(tmp_path / "valid.jsonl", rows(8))), tmp_path / "out.jsonl"
    broken, told = {"問題0？", "問題5？"}, list[str]()
    with served(lambda call: Odd(400, error="no") if call.asked in broken else right(call)) as server:
        first = tunesmith.evaluate(server.name, data, output=output)
        assert (first.content["n"], len(server.calls)) == (6, 8)
        assert measures(read_jsonl(output)) == ["f1_char", "exact_match"]
        broken.remove("問題5？")
        second = tunesmith.evaluate(server.name, data, output=output, note=told.append)
        assert sorted(call.asked for call in server.calls[8:]) == ["問題0？", "問題5？"]
        assert second.content["n"] == 7
        assert told == [f"{server.name}: 6 of 8 answers were there already."]
        broken.clear()
        third = tunesmith.evaluate(server.name, data, output=output)
        assert (third.content["n"], len(server.calls)) == (8, 11)
    assert not list(tmp_path.glob("*.partial*"))


def test_two_are_compared_on_the_rows_that_both_answered(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(9)))
    no = Odd(400, error="no")

    def reply(call: Call) -> str | Odd:
        if (call.body["model"], call.asked) in {("a", "問題2？"), ("b", "問題5？")}:
            return no
        return right(call) if call.body["model"] == "b" else "不知道"

    with served(reply) as server:
        a, b = f"{server.url}#a", f"{server.url}#b"
        result = tunesmith.compare(a, b, data=data, output=tmp_path / "out.jsonl")
    assert result.content["n"] == 7
    assert result.content["metrics"]["exact_match"]["wins"] == 7
    assert any("Compared are the 7 rows" in note for note in result.content["notes"])
    assert [line["id"] for line in read_jsonl(tmp_path / "out.jsonl")] == ["0", "1", "3", "4", "6", "7", "8"]


def test_none_answered_is_a_failure_and_no_score_of_zero(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(3)))
    no = Odd(400, error="no")
    with served(lambda _: no) as server, pytest.raises(GenerateError, match="none of 3 rows"):
        tunesmith.evaluate(server.name, data, output=tmp_path / "out.jsonl")
    assert not (tmp_path / "out.json").exists()


def test_generate_keeps_failed_rows_and_resume_asks_them_alone(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(5)))
    broken = True

    def reply(call: Call) -> str | Odd:
        return Odd(400, error="no") if broken and call.asked == "問題1？" else right(call)

    with served(reply) as server:
        output = tmp_path / "answers.jsonl"
        first = tunesmith.generate(server.name, data, output, batch_size=2)
        assert (first.finish["error"], first.finish["stop"]) == (1, 4)
        assert read_jsonl(output)[1]["error"] == "HTTP 400: no"
        broken = False
        second = tunesmith.generate(server.name, data, output, existing="resume")
        assert (second.resumed, second.answered) == (4, 1)
        assert len(server.calls) == 6
    assert [line["finish"] for line in read_jsonl(output)] == ["stop"] * 5


@pytest.mark.parametrize("verb", ["eval", pytest.param("generate", marks=pytest.mark.slow)])
def test_a_kill_asks_nothing_twice(warm: Warm, tmp_path: Path, verb: str) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(30)))
    with served(lambda call: Odd(text=right(call), seconds=0.15)) as server:
        words = {
            "eval": ["eval", server.name, "--data", data, "--output", "out.jsonl", "--json"],
            "generate": [
                "generate",
                server.name,
                "--input",
                data,
                "--output",
                "out.jsonl",
                "--batch-size",
                "4",
            ],
        }[verb]
        printed = tmp_path / "printed"
        process = warm.start(*words, folder=tmp_path, printed=printed)
        part = tmp_path / "out.jsonl.partial"
        wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 6)
        process.kill()
        time.sleep(0.3)  # what was under way ends at the server
        kept = {line["at"] for line in read_jsonl(part)[1:]}
        before = len(server.calls)
        done = warm.call(*words, *(["--resume"] if verb == "generate" else []), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        asked_again = Counter(call.asked for call in server.calls[before:])
    assert len(kept) > 5
    assert set(asked_again) == {f"問題{at}？" for at in range(30) if at not in kept}
    assert set(asked_again.values()) == {1}
    assert [line["prediction"] for line in read_jsonl(tmp_path / "out.jsonl")] == [
        row["output"] for row in rows(30)
    ]


def wait_for(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_wrong_settings_and_keys_are_told_before_anything_is_asked(warm: Warm, tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(3)))
    with served(right) as server:
        for words, says in (
            (["compare", "smollm2-135m", server.name, "--data", data, "top_k=3", "temperature=1"], "top_k"),
            (["eval", f"{server.name}@NO_SUCH_KEY", "--data", data], "NO_SUCH_KEY, which isn't set"),
        ):
            done = warm.call(*words, cwd=tmp_path)
            assert done.returncode == 2
            assert says in done.stderr
        assert server.calls == []
    assert json.dumps([file.name for file in tmp_path.iterdir()]) == '["valid.jsonl"]'


def test_a_blind_test_shows_no_failed_call_and_asks_it_again(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(6)))
    broken = True

    def reply(call: Call) -> str | Odd:
        if broken and call.asked == "問題1？":
            return Odd(400, error="no")
        return right(call) if call.body["model"] == "b" else "不知道"

    with served(reply) as server:
        words = (f"{server.url}#a", f"{server.url}#b")
        with pytest.raises(DataError, match="2 answers are missing"):
            tunesmith.blind_new(*words, data=data, output=tmp_path / "test")
        broken, before = False, len(server.calls)
        made = tunesmith.blind_new(*words, data=data, output=tmp_path / "test")
        assert {call.asked for call in server.calls[before:]} == {"問題1？"}
    assert made.pairs == 6


def test_prompts_of_an_endpoint_are_written_by_its_server(place: Path, tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(2)))
    with served(right) as server:
        result = tunesmith.compare(
            server.name, place / "qwen2", data=data, output=tmp_path / "out.jsonl", max_new_tokens=4
        )
    (note,) = (note for note in result.content["notes"] if "templates" in note)
    assert note.endswith("templates: A by its server, B by model's own.")
    assert in_chinese(note) == "两个模型的提示由不同模板写成：A 用其服务器的模板，B 用模型自带的模板。"
