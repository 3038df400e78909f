"""Replies with half letters and endless numerals, and a judge that fails: the run ends, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.openai_server import Call, Odd, served
from tests.synth.school import judging, made, make, rows, verdict, write_handbook
from tunesmith.synth.filters import flags
from tunesmith.synth.replies import read_rows


def test_half_a_surrogate_pair_in_a_reply_ends_no_run(tmp_path: Path) -> None:
    def reply(call: Call) -> str:
        if judging(call):
            return verdict(call)
        found = json.loads(made(call))["rows"]
        found[0]["question"] = "\ud83d" + found[0]["question"]
        return json.dumps({"rows": found})

    write_handbook(tmp_path, 2)
    with served(reply) as server:
        make(tmp_path, server)
        calls = len(server.calls)
        make(tmp_path, server)
        assert len(server.calls) == calls
    assert any("?" in json.dumps(row) for row in rows(tmp_path / "rows.jsonl"))


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_is_not() -> None:
    text = r'{"rows": [{"question": "\ud83d?", "answer": "\ud83d\ude00"}]}'
    assert read_rows(text) == [("??", "😀")]


@pytest.mark.parametrize("numeral", ["亿" * 600, "一" * 5000])
def test_an_endless_numeral_is_no_number_and_is_told(numeral: str) -> None:
    assert flags("问题是什么", f"共{numeral}年", "材料") == [("number not in the passage", numeral)]
    assert flags("问题是什么", f"共{numeral}年", f"材料有{numeral}年") == []


def test_a_run_is_not_complete_while_calls_to_the_judge_failed(tmp_path: Path) -> None:
    write_handbook(tmp_path, 4)
    with served(lambda c: made(c) if not judging(c) else Odd(400) if "第1条" in c.asked else verdict(c)) as s:
        assert not make(tmp_path, s).content["complete"]
    with served(lambda c: verdict(c) if judging(c) else made(c)) as s:
        assert make(tmp_path, s).content["complete"]
