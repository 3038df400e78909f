"""Rows made through real connections: the account adds up, nothing leaks, nothing is asked twice."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.openai_server import Call, Odd, Server, served
from tests.synth.school import by_rule, handbook, judging, made, mending, passage_of, verdict, write_handbook
from tests.warm import Warm
from tunesmith.api import check
from tunesmith.errors import GenerateError, RunError, SettingsError
from tunesmith.records import Conversation
from tunesmith.synth.config import Price
from tunesmith.synth.run import Result

OPTIONS: dict[str, Any] = {"size": 130, "per_chunk": 2}


def make(folder: Path, server: Server, **options: Any) -> Result:
    names = {"model": f"{server.url}#maker", "judge": f"{server.url}#judge"}
    return tunesmith.make(folder / "手册.txt", folder / "rows.jsonl", **{**OPTIONS, **names, **options})


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """What must be the same whatever happened on the way: all but the calls and what they took."""
    return {f.name: f.read_bytes() for f in folder.glob("rows.*jsonl")}


def adds_up(account: dict[str, Any]) -> None:
    kept = sum(account["kept"].values())
    assert account["chunks"] == account["used"] + sum(account["left_out"].values())
    assert account["questions"] == account["answers"] + sum(account["empty"].values())
    written = kept - account["continued"]
    assert account["answers"] == written + account["waiting"] + sum(account["rejected"].values())


def requests_in(ledger: Path) -> set[str]:
    """The messages of the calls that were kept, read as anybody can."""
    with closing(sqlite3.connect(ledger)) as base:
        return {
            json.dumps(json.loads(one), sort_keys=True)
            for (one,) in base.execute("SELECT request FROM calls")
        }


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
    assert Counter(one["reason"] for one in rejected) == Counter(account["rejected"] | account["empty"])
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
    assert "it isn't JSON" in mended.body["messages"][2]["content"]


def test_a_second_call_asks_nothing_and_one_with_another_threshold_neither(tmp_path: Path) -> None:
    write_handbook(tmp_path, 4)
    with served(lambda call: verdict(call, clear=3) if judging(call) else made(call)) as server:
        with pytest.raises(GenerateError, match="No row came out") as error:
            make(tmp_path, server)
        assert "judge: clear too low" in str(error.value)
        assert not (tmp_path / "rows.jsonl").exists()
        assert len(rows(tmp_path / "rows.rejected.jsonl")) == 16
        calls = len(server.calls)
        assert make(tmp_path, server, least={"grounded": 4, "complete": 4, "clear": 3}).rows == 16
        assert len(server.calls) == calls
        first = files(tmp_path)
        make(tmp_path, server, least={"grounded": 4, "complete": 4, "clear": 3})
        assert len(server.calls) == calls
        assert files(tmp_path) == first


def test_failed_calls_are_asked_again_and_others_are_not(tmp_path: Path) -> None:
    write_handbook(tmp_path, 4)
    broken = [True]

    def reply(call: Call) -> str | Odd:
        if broken[0] and judging(call) and "编号7919。" in call.asked.partition("<question>")[2]:
            return Odd(400, error="refused today")
        return by_rule(call)

    with served(reply) as server:
        assert make(tmp_path, server).content["account"]["rejected"] == {"judge: the call failed": 1}
        calls = len(server.calls)
        broken[0] = False
        assert make(tmp_path, server).rows == 16
        assert len(server.calls) == calls + 1


@pytest.mark.parametrize("after", [3, 20])
def test_a_kill_loses_no_call_and_ends_byte_for_byte_the_same(tmp_path: Path, warm: Warm, after: int) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_handbook(tmp_path / name, 6)

    def slow(call: Call) -> str | Odd:
        return Odd(text=str(by_rule(call)), seconds=0.02)

    with served(slow) as server:
        words = ["make", "手册.txt", "--output", "rows.jsonl", "--model", f"{server.url}#maker", "--judge",
                 f"{server.url}#judge", "--size", "130", "--per-chunk", "2"]  # fmt: skip
        whole = warm.run(*words, folder=tmp_path / "whole", printed=tmp_path / "a")
        assert whole.code == 0, whole.printed
        needed = len(server.calls)
        assert needed == 36
        child = warm.start(*words, folder=tmp_path / "killed", printed=tmp_path / "b")
        assert child.until(lambda: len(server.calls) >= needed + after)
        assert child.kill().code == -signal.SIGKILL
        assert not (tmp_path / "killed/rows.jsonl").exists()
        seen, kept = len(server.calls) - needed, requests_in(tmp_path / "killed/rows.calls.sqlite")
        ended = warm.run(*words, folder=tmp_path / "killed", printed=tmp_path / "c")
        assert ended.code == 0, ended.printed
    assert len({json.dumps(call.body) for call in server.calls[needed:]}) == needed
    # What was in the ledger at the kill wasn't asked again.
    again = [json.dumps(call.body["messages"], sort_keys=True) for call in server.calls[needed + seen :]]
    assert not set(again) & kept
    assert kept or after < 5
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.parametrize("point", ["ledger.add:2", "ledger.added:2", "file.rename:3", "make.write"])
def test_a_kill_at_any_write_is_gone_on_from(tmp_path: Path, warm: Warm, point: str) -> None:
    write_handbook(tmp_path, 3)
    with served(by_rule) as server:
        words = ["make", "手册.txt", "--output", "rows.jsonl", "--model", f"{server.url}#maker", "--judge",
                 f"{server.url}#judge", "--size", "130", "--per-chunk", "2"]  # fmt: skip
        died = warm.start(
            *words, folder=tmp_path, printed=tmp_path / "said", variables={"TUNESMITH_FAIL_AT": point}
        ).wait()
        assert died.code == -signal.SIGKILL, died.printed
        ended = warm.run(*words, folder=tmp_path, printed=tmp_path / "said")
        assert ended.code == 0, ended.printed
        assert "12 rows" in ended.printed
    assert len({json.dumps(call.body) for call in server.calls}) == 18
    assert not [f.name for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_a_limit_of_calls_stops_cleanly_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    write_handbook(tmp_path, 6)
    with served(by_rule) as server:
        result = make(tmp_path, server, max_calls=20)
        adds_up(result.content["account"])
        assert len(server.calls) == 20
        assert result.content["stopped"] == "--max-calls 20 is reached"
        assert not result.content["complete"]
        assert (result.rows, result.content["account"]["waiting"]) == (8, 16)
        result = make(tmp_path, server, max_calls=100)
        assert len(server.calls) == 36
        assert (result.rows, result.content["stopped"], result.content["complete"]) == (24, "", True)
        limited = files(tmp_path)
        (tmp_path / "at-once").mkdir()
        write_handbook(tmp_path / "at-once", 6)
        make(tmp_path / "at-once", server)
        assert files(tmp_path / "at-once") == limited


def test_a_limit_of_cost_is_never_passed(tmp_path: Path) -> None:
    write_handbook(tmp_path, 6)
    with served(by_rule) as server:
        prices = {"price": Price(10, 20), "judge_price": Price(5, 5)}
        result = make(tmp_path, server, max_cost=0.0084, tokens=100, judge_tokens=100, **prices)
        assert "--max-cost 0.0084 leaves no room" in result.content["stopped"]
        # Each call has 7 tokens read and 3 written, by the server.
        calls = {one["purpose"]: one["calls"] for one in result.content["calls"]}
        assert 0 < calls["make"] + calls["judge"] == len(server.calls) < 36
        spent = (calls["make"] * (7 * 10 + 3 * 20) + calls["judge"] * 10 * 5) / 1e6
        assert result.content["cost"] == pytest.approx(spent)
        assert spent <= 0.0084
        with pytest.raises(SettingsError, match="can't be made") as error:
            make(tmp_path, server, max_cost=1, price=Price(1, 1))
        assert "--judge-price" in str(error.value)


def test_a_pilot_s_calls_are_paid_once(tmp_path: Path) -> None:
    write_handbook(tmp_path, 6)
    with served(by_rule) as server:
        pilot = make(tmp_path, server, pilot=3)
        assert (len(server.calls), pilot.content["account"]["used"], pilot.content["complete"]) == (
            9,
            3,
            False,
        )
        make(tmp_path, server)
        assert len(server.calls) == 36


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


def test_a_server_that_is_gone_ends_it_and_keeps_what_came(tmp_path: Path) -> None:
    write_handbook(tmp_path)
    state: dict[str, Callable[[Call], str | Odd]] = {"reply": by_rule}

    def reply(call: Call) -> str | Odd:
        return (
            Odd(401, error="wrong key") if call.number >= 20 and state["reply"] is by_rule else made_or(call)
        )

    def made_or(call: Call) -> str | Odd:
        return by_rule(call)

    with served(reply) as server:
        with pytest.raises(GenerateError, match="can't be asked"):
            make(tmp_path, server)
        assert not (tmp_path / "rows.jsonl").exists()
        state["reply"] = made_or
        assert make(tmp_path, server).rows == 48
        bodies = Counter(json.dumps(call.body, sort_keys=True) for call in server.calls[:20])
        later = {json.dumps(call.body, sort_keys=True) for call in server.calls[20:]}
        assert len(set(bodies) & later) <= 8  # those that were under way when the key was refused


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
