"""A judge behind a real socket: one with a taste for a side, a place, length, chance or garbage."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.openai_server import Call, Odd, Reply, served
from tests.warm import Warm
from tunesmith.errors import GenerateError, RunError, UsageError
from tunesmith.evaluate.judge.measure import Judged
from tunesmith.evaluate.judge.sections import sections, title
from tunesmith.rundir import read_jsonl

N = 24


def answers(file: Path, text: Callable[[int], str], n: int = N) -> str:
    lines = [
        {"id": str(i), "prompt": f"問題{i}：怎么请假？", "prediction": text(i), "references": ["找辅导员"]}
        for i in range(n)
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(file)


def shown(call: Call) -> tuple[str, str]:
    """The two answers in the order in which the judge sees them."""
    found = re.findall(r"<answer_(\d)>\n(.*?)\n</answer_\1>", call.asked, re.DOTALL)
    assert [number for number, _ in found] == ["1", "2"]
    return found[0][1], found[1][1]


def says(better: str) -> str:
    return json.dumps({"reason": "因为", "better": better}, ensure_ascii=False)


def of_content(better: Callable[[str, str], bool]) -> Reply:
    """A judge that takes the first where `better(first, second)`, else the second."""
    return lambda call: says("1" if better(*shown(call)) else "2")


def judged(tmp_path: Path, reply: Reply, **options: Any) -> tuple[dict[str, Any], list[Call]]:
    a = answers(tmp_path / "a.jsonl", lambda i: f"甲{i}")
    b = answers(tmp_path / "b.jsonl", lambda i: f"乙乙乙乙{i}" if i % 2 else f"乙{i}")
    with served(reply) as server:
        result = tunesmith.judge(a, b, judge=server.name, output=tmp_path / "out.jsonl", **options)
        return result.content, server.calls


def test_a_judge_that_knows_what_it_wants_decides_every_row_whatever_the_order(tmp_path: Path) -> None:
    content, calls = judged(tmp_path, of_content(lambda first, _: first.startswith("乙")))
    assert (content["wins"], content["losses"], content["ties"]) == (N, 0, 0)
    assert content["preferred"] == "b"
    assert content["orders"]["flipped"] == 0
    assert content["first_position"]["share"]["value"] == 0.5
    assert len(calls) == 2 * N
    assert len({call.asked for call in calls}) == 2 * N
    assert content["language"] == "zh"
    assert "比较" in content["prompt"]["text"]


@pytest.mark.parametrize("place", ["1", "2"])
def test_a_judge_that_takes_a_place_gives_ties_alone(tmp_path: Path, place: str) -> None:
    content, _ = judged(tmp_path, lambda _: says(place))
    assert (content["wins"], content["losses"], content["ties"]) == (0, 0, N)
    assert content["orders"]["flip_rate"]["value"] == 1.0
    assert content["first_position"]["share"]["value"] == (1.0 if place == "1" else 0.0)
    assert "cannot tell" in content["verdict"]
    assert any("more often than chance" in note for note in content["notes"])
    assert any("opposite side" in note for note in content["notes"])


def test_a_judge_that_always_says_a_is_malformed_and_counts_for_nobody(tmp_path: Path) -> None:
    with pytest.raises(GenerateError, match=f"judged none of {N} rows"):
        judged(tmp_path, lambda _: says("A"))
    with pytest.raises(GenerateError, match="isn't a JSON object"):
        judged(tmp_path, lambda _: "A 更好")


def test_a_judge_by_chance_shows_no_difference(tmp_path: Path) -> None:
    chance = random.Random(5)
    content, _ = judged(tmp_path, lambda _: says(chance.choice(["1", "2", "tie"])))
    assert content["p_value"] is None or content["p_value"] > 0.05
    assert content["orders"]["flipped"] > 0
    assert content["wins"] + content["losses"] + content["ties"] == N


def test_a_taste_for_length_is_named(tmp_path: Path) -> None:
    content, _ = judged(tmp_path, of_content(lambda first, second: len(first) > len(second)))
    # Of B's answers half are longer and half as long: these the judge decides by their place.
    assert (content["longer"]["longer"], content["longer"]["shorter"]) == (N // 2, 0)
    assert content["ties"] == N // 2
    assert any("taste for length" in note for note in content["notes"])


def test_a_malformed_reply_is_mended_once_and_else_left_out(tmp_path: Path) -> None:
    def reply(call: Call) -> str:
        mending = len(call.body["messages"]) > 1
        if "問題3：" in call.asked:
            return "```json\n" + says("1") + "\n```"  # a fence is let through
        if "問題5：" in call.asked and not mending:
            return "我觉得第二个更好"
        if "問題7：" in call.asked:
            return '{"reason": "x", "better": "2", "better": "1"}'
        return says("1" if shown(call)[0].startswith("乙") else "2")

    content, calls = judged(tmp_path, reply)
    assert content["left_out"] == {"alike": 0, "unanswered": 0, "failed": 0, "malformed": 1}
    assert (content["n"], content["wins"], content["ties"]) == (N - 1, N - 2, 1)
    assert content["calls"]["mended"] == 6  # rows 5 and 7 twice each, and both second tries of row 7
    mended = [call for call in calls if len(call.body["messages"]) == 3]
    assert len(mended) == 4
    assert "JSON" in mended[0].body["messages"][2]["content"]
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows if row["verdict"] is None] == ["7"]
    assert "twice" in next(row["problem"] for row in rows if row["id"] == "7")
    assert [len(row["calls"]) for row in rows[4:8]] == [2, 4, 2, 4]
    first = rows[0]["calls"][0]
    assert (first["prompt_tokens"], first["tokens"]) == (7, 3)
    assert json.loads(first["reply"]) == first["verdict"]
    assert first["request"][0]["role"] == "user"
    assert first["seconds"] > 0


def test_failed_calls_are_left_out_and_asked_again_by_the_next_call_alone(tmp_path: Path) -> None:
    broken = True

    def reply(call: Call) -> str | Odd:
        if broken and "問題2：" in call.asked:
            return Odd(400, error="content policy")
        return says("1" if shown(call)[0].startswith("乙") else "2")

    a, b = (
        answers(tmp_path / "a.jsonl", lambda i: f"甲{i}"),
        answers(tmp_path / "b.jsonl", lambda i: f"乙{i}"),
    )
    out = tmp_path / "out.jsonl"
    with served(reply) as server:
        content = tunesmith.judge(a, b, judge=server.name, output=out).content
        assert (content["n"], content["left_out"]["failed"], content["wins"]) == (N - 1, 1, N - 1)
        broken, before = False, len(server.calls)
        content = tunesmith.judge(a, b, judge=server.name, output=out).content
        assert (content["n"], content["left_out"]["failed"]) == (N, 0)
        assert len(server.calls) - before == 2
        tunesmith.judge(a, b, judge=server.name, output=out)
        assert len(server.calls) - before == 2
        tunesmith.judge(a, b, judge=server.name, output=out, again=True)
        assert len(server.calls) - before == 2 + 2 * N


def test_equal_and_missing_answers_cost_no_call(tmp_path: Path) -> None:
    a = answers(tmp_path / "a.jsonl", lambda i: f"甲{i}", 8)
    b = answers(tmp_path / "b.jsonl", lambda i: f"甲{i} " if i < 3 else f"乙{i}", 8)
    lines = read_jsonl(Path(b))
    lines[7] |= {"prediction": "", "finish": "error", "error": "HTTP 500"}
    Path(b).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with served(of_content(lambda first, _: first.startswith("乙"))) as server:
        content = tunesmith.judge(a, b, judge=server.name, output=tmp_path / "out.jsonl").content
        assert len(server.calls) == 8
    assert (content["n"], content["rows"]) == (4, 8)
    assert content["left_out"] == {"alike": 3, "unanswered": 1, "failed": 0, "malformed": 0}
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 8


def test_a_kill_during_judging_asks_nothing_twice(warm: Warm, tmp_path: Path) -> None:
    a, b = (
        answers(tmp_path / "a.jsonl", lambda i: f"甲{i}"),
        answers(tmp_path / "b.jsonl", lambda i: f"乙{i}"),
    )
    wise = of_content(lambda first, _: first.startswith("乙"))
    with served(lambda call: Odd(text=str(wise(call)), seconds=0.15)) as server:
        words = ["judge", a, b, "--judge", server.name, "--output", "out.jsonl", "--json"]
        process = warm.start(*words, folder=tmp_path, printed=tmp_path / "printed")
        part, end = tmp_path / "out.jsonl.partial", time.monotonic() + 60
        while not part.exists() or part.read_bytes().count(b"\n") < 12:
            assert time.monotonic() < end
            time.sleep(0.02)
        process.kill()
        time.sleep(0.4)
        kept, before = len(read_jsonl(part)) - 1, len(server.calls)
        done = warm.call(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        again = Counter(call.asked for call in server.calls[before:])
    assert kept >= 11
    assert len(again) == 2 * N - kept
    assert set(again.values()) == {1}
    assert f"{kept} of {2 * N} calls were there already" in done.stderr
    assert json.loads(done.stdout)["wins"] == N


RUBRIC = """criteria:
  - {name: 对, asks: 对不对？, weight: 3}
  - {name: 美, asks: 美不美？}
"""


def graded(scores: Callable[[str], tuple[Any, Any]]) -> Reply:
    def reply(call: Call) -> str:
        text = re.findall(r"<answer>\n(.*?)\n</answer>", call.asked, re.DOTALL)[0]
        first, second = scores(text)
        verdict = {"对": {"reason": "…", "score": first}, "美": {"reason": "…", "score": second}}
        return json.dumps(verdict, ensure_ascii=False)

    return reply


def with_rubric(tmp_path: Path, reply: Reply, *, two: bool) -> Judged:
    (tmp_path / "rubric.yaml").write_text(RUBRIC, encoding="utf-8")
    a = answers(tmp_path / "a.jsonl", lambda i: f"甲{i}")
    b = answers(tmp_path / "b.jsonl", lambda i: f"乙{i}") if two else None
    with served(reply) as server:
        return tunesmith.judge(
            a, b, judge=server.name, rubric=str(tmp_path / "rubric.yaml"), output=tmp_path / "out.jsonl"
        )


def test_a_rubric_s_scores_are_weighted_means_with_intervals(tmp_path: Path) -> None:
    content = with_rubric(
        tmp_path, graded(lambda text: (5 if int(text[1:]) % 2 else 3, 1)), two=False
    ).content
    found = content["criteria"]
    assert list(found) == ["overall", "对", "美"]
    assert found["对"]["a"]["value"] == 4.0
    assert found["美"]["a"]["value"] == 1.0
    assert found["overall"]["a"]["value"] == pytest.approx((3 * 4 + 1) / 4)
    assert (
        1
        <= found["overall"]["a"]["low"]
        < found["overall"]["a"]["value"]
        < found["overall"]["a"]["high"]
        <= 5
    )
    assert found["美"]["a"]["low"] == 1.0
    table = sections(content)[0]
    assert table.columns == ("criterion", "score [95 %]")
    assert table.rows[1][0] == "对 (x3)"


def test_two_sides_graded_by_a_rubric_are_compared_in_pairs(tmp_path: Path) -> None:
    better = graded(lambda text: (5 if text.startswith("乙") and int(text[1:]) % 3 else 2, 3))
    content = with_rubric(tmp_path, better, two=True).content
    assert content["criteria"]["overall"]["verdict"] == "better"
    assert content["criteria"]["对"]["wins"] == 16
    assert content["criteria"]["美"]["difference"]["value"] == 0
    assert "cannot tell" in content["criteria"]["美"]["verdict"]
    assert sections(content)[0].columns[0] == "criterion"


@pytest.mark.parametrize(
    "score", [0, 3.5, True, *(pytest.param(one, marks=pytest.mark.slow) for one in (6, "4", None))]
)
def test_scores_that_aren_t_1_to_5_count_for_nothing(tmp_path: Path, score: Any) -> None:
    reply = graded(lambda text: (score if text == "甲2" else 4, 4))
    content = with_rubric(tmp_path, reply, two=False).content
    assert (content["n"], content["left_out"]["malformed"]) == (N - 1, 1)
    assert content["criteria"]["对"]["a"]["value"] == 4.0


def test_sections_say_what_the_figures_say(tmp_path: Path) -> None:
    content, _ = judged(tmp_path, of_content(lambda first, _: first.startswith("乙")))
    assert "judge: http://127.0.0.1" in title(content)
    votes, judge = sections(content)
    assert votes.sentences == ("B is preferred.",)
    assert ("wins needed", f"18 of {N} for p < 0.05") in votes.rows
    assert ("both orders the same", f"{N} of {N}") in judge.rows
    assert ("calls", f"{2 * N}, 0 malformed, 0 failed") in judge.rows


def test_mistakes_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    a = answers(tmp_path / "a.jsonl", lambda i: f"甲{i}", 3)
    with served(lambda _: says("1")) as server:
        with pytest.raises(UsageError, match="rubric builtin"):
            tunesmith.judge(a, judge=server.name)
        with pytest.raises(UsageError, match="no prompts to ask"):
            tunesmith.judge(a, "smollm2-135m", judge=server.name)
        with pytest.raises(UsageError, match="a judge has to answer"):
            tunesmith.judge(a, a.replace("a.jsonl", "b.jsonl"), judge=a)
        with pytest.raises(RunError, match="blind test"):
            tunesmith.judge(a, a + "l.jsonl", judge=server.name, blind=tmp_path)
        assert server.calls == []
