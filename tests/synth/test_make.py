"""Rows made through real connections: the account adds up, nothing leaks, nothing is asked twice."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import tunesmith
from tests.openai_server import Call, Odd, served
from tests.synth.school import (
    adds_up,
    by_rule,
    files,
    handbook,
    judging,
    made,
    make,
    mending,
    passage_of,
    rows,
    verdict,
    write_handbook,
)
from tunesmith.api import check
from tunesmith.errors import GenerateError, RunError
from tunesmith.records import Conversation


def test_a_handbook_becomes_rows_that_the_rest_of_the_program_reads(tmp_path: Path) -> None:
    write_handbook(tmp_path)
    with served(by_rule) as server:
        result = make(tmp_path, server)
    account = result.content["account"]
    adds_up(account)
    assert account["chunks"] == account["used"] == 24
    assert account["questions"] == 48
    assert account["kept"] == {"train": 40, "valid": 4, "test": 4}
    assert len(server.calls) == 24 + 48
    for name, count in (("rows", 40), ("rows.valid", 4), ("rows.test", 4)):
        report = check(str(tmp_path / f"{name}.jsonl"))
        assert (report.files[0].format_name, len(report.records), report.bad_rows) == ("messages", count, [])
    sources = rows(tmp_path / "rows.sources.jsonl")
    text = handbook()
    by_id = {
        row["id"]: row
        for part in ("rows", "rows.valid", "rows.test")
        for row in rows(tmp_path / f"{part}.jsonl")
    }
    assert set(by_id) == {one["id"] for one in sources}
    for one in sources:
        assert text[one["start"] : one["end"]] == one["passage"]
        assert by_id[one["id"]]["messages"][1]["content"].strip("。") in one["passage"]
        assert (one["file"], one["maker"], one["judge"]) == (
            "手册.txt",
            f"{server.url}#maker",
            f"{server.url}#judge",
        )
        assert one["verdict"]["grounded"] == 5
    # Whole chapters: none has rows in two parts.
    chapters = {(one["headings"][0], one["part"]) for one in sources}
    assert len({chapter for chapter, _ in chapters}) == len(chapters)
    assert result.content["complete"]
    assert [(one["purpose"], one["calls"], one["prompt_tokens"]) for one in result.content["calls"]] == [
        ("make", 24, 24 * 7), ("judge", 48, 48 * 7)
    ]  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "rows.report.json").read_text(encoding="utf-8")


def test_progress_never_passes_its_end(tmp_path: Path) -> None:
    write_handbook(tmp_path, 4)
    seen: list[tuple[int, int]] = []
    with served(by_rule) as server:
        make(tmp_path, server, watch=lambda _, done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)
    assert seen[0] == (0, 8 * 3)
    assert seen[-1] == (24, 24)


def test_what_is_wrong_is_rejected_by_its_own_reason_and_stays_readable(tmp_path: Path) -> None:
    write_handbook(tmp_path)

    def reply(call: Call) -> str | Odd:
        # A chapter's three articles are two chunks.
        article = int(re.findall(r"第(\d+)条", passage_of(call))[0])
        at = (article - 1) // 3 * 2 + (article % 3 == 0)
        if not judging(call):
            if at == 0:
                return "好的，我来写问题。"  # twice
            if at == 1 and not mending(call):
                return "不是 JSON"
            if at == 2:
                return Odd(400, error="this one is refused")
            if at == 3:
                return '{"rows": []}'
            if at == 4:
                good = json.loads(made(call))["rows"]
                bad = [
                    {"question": "上述规定是什么？", "answer": "见上。"},
                    {"question": "学校食堂几点开门？", "answer": ""},
                ]
                return json.dumps({"rows": [*good[:0], *bad, good[0]]})
            if at == 5:
                row = json.loads(made(call))["rows"][0]
                return json.dumps({"rows": [row, {**row, "question": row["question"] + "呢"}]})
            if at == 6:
                return json.dumps({"rows": [{"question": "办理手续要多少钱？", "answer": "要 99999 元。"}]})
            return made(call)
        if at == 7:
            return verdict(call, grounded=2)
        if at == 8:
            return verdict(call, quote="材料里没有的一句话")
        if at == 9:
            return "五分"
        if at == 10 and not mending(call):
            return "五分"
        if at == 11:
            return Odd(400, error="refused")
        return verdict(call)

    with served(reply) as server:
        result = make(tmp_path, server)
    account = result.content["account"]
    adds_up(account)
    assert account["without_rows"] == {
        "qa: the call failed": 1, "qa: the model found nothing to ask": 1,
        "qa: the reply was malformed twice": 1,
    }  # fmt: skip
    assert account["empty"] == {"empty answer": 1}
    assert account["rejected"] == {
        "judge: grounded too low": 2, "judge: its quote isn't in the passage": 2, "judge: the call failed": 2,
        "judge: the reply was malformed twice": 2, "more than was asked for": 1, "nearly another question": 1,
        "number not in the passage": 1, "points at a text that nobody sees": 1,
    }  # fmt: skip
    rejected = rows(tmp_path / "rows.rejected.jsonl")
    of_rows = Counter(one["reason"] for one in rejected if one["of"] == "row")
    assert of_rows == Counter(account["rejected"] | account["empty"])
    of_chunks = [one for one in rejected if one["of"] == "chunk"]
    assert Counter(f"{one['kind']}: {one['reason']}" for one in of_chunks) == account["without_rows"]
    text = handbook()
    assert all(text[one["start"] : one["end"]] == one["passage"] for one in of_chunks)
    malformed = next(one for one in of_chunks if one["reason"] == "the reply was malformed twice")
    assert malformed["about"] == "it isn't JSON: 好的，我来写问题。"
    assert (malformed["file"], malformed["headings"]) == ("手册.txt", ["第1章 请假"])
    low = next(one for one in rejected if one["reason"] == "judge: grounded too low")
    assert low["about"] == "grounded 2 of 4"
    assert low["verdict"]["grounded"] == 2
    purposes = {one["purpose"]: (one["calls"], one["failed"]) for one in result.content["calls"]}
    assert purposes["make again"] == (2, 0)
    assert purposes["judge again"] == (4, 0)
    assert purposes["judge"][1] == 2
    # A malformed reply is mended with what was wrong.
    mended = next(call for call in server.calls if mending(call))
    assert [message["role"] for message in mended.body["messages"]] == ["user", "assistant", "user"]
    assert "无法读取：不是 JSON。" in mended.body["messages"][2]["content"]
    unread = next(one for one in rejected if one["reason"] == "judge: the reply was malformed twice")
    assert unread["about"] == "it isn't JSON: 五分"


def test_a_part_without_rows_is_told(tmp_path: Path) -> None:
    write_handbook(tmp_path)
    with served(by_rule) as server:
        made_rows = make(tmp_path, server, pilot=1)
    told = [line for line in made_rows.lines if line.startswith("no ")]
    assert told == [
        "no valid rows came out, though 1 section is for valid: there is no rows.valid.jsonl",
        "no test rows came out, though 1 section is for test: there is no rows.test.jsonl",
    ]


def test_a_reply_that_was_cut_off_is_not_asked_for_again_with_the_same_limit(tmp_path: Path) -> None:
    write_handbook(tmp_path, 3)
    odd = Odd(text='{"rows": [{"question": "办理', finish="length")
    with served(lambda call: odd if "请假" in call.asked else by_rule(call)) as server:
        result = make(tmp_path, server, tokens=200)
    why = "qa: cut off at 200 tokens: --tokens allows more"
    assert result.content["account"]["without_rows"] == {why: 2}
    assert not any(mending(call) for call in server.calls)


def test_rows_to_see_what_was_learnt_are_labelled_and_not_trained_on(tmp_path: Path) -> None:
    write_handbook(tmp_path)
    with served(by_rule) as server:
        result = make(tmp_path, server, recall=0.5)
    assert result.content["account"]["kept"] == {"train": 30, "valid": 4, "test": 4, "recall": 10}
    recall = {row["id"] for row in rows(tmp_path / "rows.recall.jsonl")}
    train = {row["id"] for row in rows(tmp_path / "rows.jsonl")}
    assert not recall & train
    sources = {one["id"]: one for one in rows(tmp_path / "rows.sources.jsonl")}
    trained = {sources[one]["chunk"] for one in train}
    assert all(sources[one]["part"] == "recall" and sources[one]["chunk"] in trained for one in recall)


@pytest.mark.parametrize("form", ["alpaca", "prompt-completion", "messages"])
def test_every_format_is_read_by_check(tmp_path: Path, form: str) -> None:
    write_handbook(tmp_path, 3)
    with served(by_rule) as server:
        make(
            tmp_path,
            server,
            form=form,
            system="你是学校的助手。",
            kinds=("qa", "summary", "continue"),
            no_judge=True,
            judge=None,
        )
    report = check(str(tmp_path / "rows.jsonl"))
    assert (report.files[0].format_name, report.bad_rows) == (form, [])
    for row in report.records:
        assert isinstance(row, Conversation)
        assert row.messages[0].content == "你是学校的助手。"
        assert row.messages[-1].role == "assistant"


def test_the_maker_as_judge_is_warned_of(tmp_path: Path) -> None:
    write_handbook(tmp_path, 3)
    told: list[str] = []
    with served(by_rule) as server:
        make(tmp_path, server, judge=f"{server.url}#maker", note=told.append)
    assert any("judges its own rows" in line for line in told)


def test_rows_that_a_person_changed_are_not_replaced(tmp_path: Path) -> None:
    write_handbook(tmp_path, 3)
    with served(by_rule) as server:
        make(tmp_path, server)
        edited = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").replace("学校", "我校")
        (tmp_path / "rows.jsonl").write_text(edited, encoding="utf-8")
        with pytest.raises(RunError, match="would be replaced"):
            make(tmp_path, server)
        assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == edited
        make(tmp_path, server, force=True)
        assert "我校" not in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
        (tmp_path / "other.calls.sqlite").write_bytes(b"something else")
        with pytest.raises(RunError, match="damaged or something else"):
            tunesmith.make(tmp_path / "手册.txt", tmp_path / "other.jsonl", kinds=("continue",))


def test_a_novel_needs_no_model(tmp_path: Path) -> None:
    chapters = [
        f"第{n}章 雨{n}\n\n"
        + "\n\n".join(
            f"这是第{n}章的第{i}段，编号{n * 1009 + i * 7919}，讲的是第{n * i}场雨。" for i in range(1, 7)
        )
        for n in range(1, 11)
    ]
    (tmp_path / "novel.txt").write_text("\n\n".join(chapters), encoding="utf-8")
    result = tunesmith.make(
        tmp_path / "novel.txt", tmp_path / "rows.jsonl", kinds=("continue",), size=70, form="alpaca"
    )
    text = (tmp_path / "novel.txt").read_text(encoding="utf-8")
    assert result.content["account"]["kept"].keys() == {"train", "valid", "test"}
    for row in rows(tmp_path / "rows.jsonl"):
        assert row["instruction"] == "续写下面的文字："
        assert text[text.index(row["input"]) + len(row["input"]) :].strip().startswith(row["output"])
    assert result.content["calls"] == []
    before = files(tmp_path)
    before.pop("rows.rejected.jsonl")
    with pytest.raises(GenerateError, match="--size below 9000"):
        tunesmith.make(tmp_path / "novel.txt", tmp_path / "rows.jsonl", kinds=("continue",), size=9000)
    after = files(tmp_path)
    rejected = [json.loads(line) for line in after.pop("rows.rejected.jsonl").decode().splitlines()]
    assert after == before  # what is there isn't lost
    assert {one["reason"] for one in rejected} == {"nothing follows in its section"}
