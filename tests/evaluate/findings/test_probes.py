"""What models are asked besides the rows is kept as it comes, and lost to nothing that fails on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.made_run import Scripted, couplets
from tunesmith.errors import GenerateError
from tunesmith.evaluate.answerers import Watch
from tunesmith.evaluate.compare import compared
from tunesmith.evaluate.findings.collect import collect
from tunesmith.evaluate.findings.general import NAME
from tunesmith.evaluate.findings.probes import Probes
from tunesmith.evaluate.measure import Result, measure_several
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.questions import choose_metrics, read_questions
from tunesmith.infer.config import Sampling
from tunesmith.records import Completion, Conversation
from tunesmith.worklog import claim


class Stop(Exception):
    """Stands for a kill: nothing is prepared for it."""


def perfect(row: Conversation) -> str:
    return row.references[0]


def silent(_: Conversation) -> str:
    return ""


def asked(tmp_path: Path, a: Scripted, b: Scripted) -> dict[str, Any]:
    rows = couplets(3)
    with claim(tmp_path / "out.jsonl", "again") as held:
        probes = Probes(held, rows, sides=2, forgetting=True, own=True)
        result = compared(held, (a, b), rows, [METRICS["f1_char"]], also=probes)
        return collect([result.a, result.b], rows, None, probes)


def test_who_knew_all_and_knows_nothing_has_forgotten(tmp_path: Path) -> None:
    found = asked(tmp_path, Scripted("a", perfect), Scripted("b", silent))["forgetting"]
    assert (found["a"], found["b"], found["losses"], found["verdict"]) == (60, 0, 60, "worse")
    assert found["p_value"] < 1e-9
    assert found["by"] == {name: {"n": 30, "a": 30, "b": 0} for name in ("zh", "en")}
    assert len(found["lost"]) == 60
    asking = "中国的首都是哪座城市？只回答城市名。"
    lost = {"id": "zh-01", "question": asking, "answer": "北京", "a": "北京", "b": ""}
    assert found["lost"][0] == lost
    again = asked(tmp_path, Scripted("a", silent), Scripted("b", perfect))["forgetting"]
    assert (again["verdict"], len(again["gained"])) == ("better", 60)
    same = asked(tmp_path, Scripted("a", perfect), Scripted("b", perfect))["forgetting"]
    assert same["verdict"].startswith("cannot tell")


def test_a_model_that_can_t_be_asked_loses_no_figures(tmp_path: Path) -> None:
    def only_couplets(row: Conversation) -> str:
        if "首" in row.question and "詩" not in row.question:
            raise GenerateError("It is too long for the model.")
        return perfect(row)

    told: list[str] = []
    rows = couplets(3)
    with claim(tmp_path / "out.jsonl", "again") as held:
        probes = Probes(held, rows, sides=2, forgetting=True, own=True, note=told.append)
        sides = Scripted("a", perfect), Scripted("b", only_couplets)
        result = compared(held, sides, rows, [METRICS["f1_char"]], also=probes)
        found = collect([result.a, result.b], rows, None, probes)
    assert told == ["b: a part of the findings is left out. It is too long for the model."]
    assert "forgetting" not in found
    assert found["changed"]["same"] == 3


@pytest.mark.parametrize("what", ["{base} answers, general questions", "{run}: its own answers' loss"])
def test_a_kill_while_they_are_asked_costs_nothing(eight: Path, tmp_path: Path, what: str) -> None:
    found, run, base = (
        read_questions(str(eight / "asked.jsonl")),
        str(eight / "runs/heart"),
        str(eight / "qwen2"),
    )
    stop_at, told, steps = what.format(base=base, run=run), list[str](), list[tuple[str, int]]()

    def stopping(name: str, done: int, _: int) -> None:
        if name == stop_at and done:
            raise Stop

    def attempt(watch: Watch) -> Result:
        return measure_several(
            (run,), found, choose_metrics("f1_char", found), Sampling(max_new_tokens=90),
            output=tmp_path / "out.jsonl", dtype="fp32", watch=watch, note=told.append,
        )  # fmt: skip

    with pytest.raises(Stop):
        attempt(stopping)
    assert (tmp_path / "out.jsonl.0.general.partial").is_file()
    result = attempt(lambda name, done, _: steps.append((name, done)))
    begun = dict(reversed(steps))  # the first count that each part told
    assert begun[stop_at] > 0
    assert any("were there already" in line for line in told)
    assert not list(tmp_path.glob("*.partial*"))
    assert result.content["findings"]["forgetting"]["n"] == 60


class Failing(Scripted):
    """Fails on every second general question: on those of even numbers, or on the others."""

    def __init__(self, name: str, even: bool) -> None:
        super().__init__(name, perfect)
        self.even = even

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        for conversation in conversations:
            row, general = conversation.origin.row, conversation.origin.path == NAME
            if general and (row % 2 == 0) is self.even:
                yield [Completion("", "error", 0, 0, error="the server is away")]
            else:
                yield [Completion(perfect(conversation), "stop", 20, 12, 0.5)]


def test_general_questions_that_no_two_answered_lose_no_figures(tmp_path: Path) -> None:
    told: list[str] = []
    rows = couplets(3)
    with claim(tmp_path / "out.jsonl", "again") as held:
        probes = Probes(held, rows, sides=2, forgetting=True, own=True, note=told.append)
        sides = Failing("a", even=True), Failing("b", even=False)
        result = compared(held, sides, rows, [METRICS["f1_char"]], also=probes)
        found = collect(result.sides, rows, None, probes)
    assert told == ["The general questions are left out of the findings. No row was answered by all."]
    assert "forgetting" not in found
    assert found["changed"]["same"] == 3
