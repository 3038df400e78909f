"""What an interrupted or limited `make` leaves, and how the same command goes on: no call is made twice."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.openai_server import Call, Odd, served
from tests.synth.school import (
    adds_up,
    by_rule,
    files,
    judging,
    made,
    make,
    rows,
    verdict,
    write_handbook,
)
from tests.warm import Warm
from tunesmith.errors import GenerateError, SettingsError
from tunesmith.synth.config import Price


def requests_in(ledger: Path) -> set[str]:
    """The messages of the calls that were kept, read as anybody can."""
    with closing(sqlite3.connect(ledger)) as base:
        return {
            json.dumps(json.loads(one), sort_keys=True)
            for (one,) in base.execute("SELECT request FROM calls")
        }


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


@pytest.mark.parametrize("after", [3, pytest.param(20, marks=pytest.mark.slow)])
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


def test_ctrl_c_says_what_is_kept_and_a_second_process_is_refused(tmp_path: Path, warm: Warm) -> None:
    write_handbook(tmp_path, 6)
    going_on = threading.Event()

    def reply(call: Call) -> Odd:
        if call.number > 8:
            going_on.wait(60)
        return Odd(text=str(by_rule(call)))

    with served(reply) as server:
        words = ["make", "手册.txt", "--output", "rows.jsonl", "--model", f"{server.url}#maker", "--no-judge",
                 "--size", "60", "--per-chunk", "2"]  # fmt: skip
        child = warm.start(*words, folder=tmp_path, printed=tmp_path / "said")
        ledger = tmp_path / "rows.calls.sqlite"
        assert child.until(lambda: len(server.calls) >= 10 and len(requests_in(ledger)) == 9)
        second = warm.run(*words, folder=tmp_path, printed=tmp_path / "second")
        assert second.code == 1
        assert "is being written by another process" in second.printed
        child.send(signal.SIGINT)
        ended = child.wait()
        going_on.set()
    assert ended.code == 130, ended.printed
    assert re.search(r"Interrupted\. 9 calls kept\.\nThe same command goes on", ended.printed)
    assert "Traceback" not in ended.printed
    assert not (tmp_path / "rows.jsonl").exists()


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
