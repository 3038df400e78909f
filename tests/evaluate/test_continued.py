"""What an interrupted eval or compare leaves, and how the same command goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.made_run import Scripted, couplets
from tunesmith.errors import GenerateError
from tunesmith.evaluate.answerers import Watch
from tunesmith.evaluate.measure import Result, measure_one, measure_several
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.questions import read_questions
from tunesmith.evaluate.run import evaluate
from tunesmith.infer.config import Sampling
from tunesmith.records import Completion, Conversation
from tunesmith.worklog import read

pytestmark = pytest.mark.usefixtures("few_questions")

ALL = [METRICS[name] for name in ("f1_char", "exact_match", "verse_form")]
SHORT = Sampling(max_new_tokens=6)


def perfect(conversation: Conversation) -> str:
    return conversation.references[0]


class Dying:
    """Answers three rows, looks at the file, and fails as a model that runs out of memory does."""

    name = "dying"

    def __init__(self, file: Path) -> None:
        self.file, self.seen = file, 0

    def complete(self, _: Sequence[Conversation]) -> Iterator[list[Completion]]:
        for _ in range(3):
            yield [Completion("好", "stop", 1, 1)]
        self.seen = answers_in(self.file)
        raise GenerateError("out of memory")


def answers_in(file: Path) -> int:
    worklog = read(file)
    assert worklog is not None
    return len(worklog.rows("answers"))


def test_answers_are_on_the_disk_before_the_last_one_is_in(tmp_path: Path) -> None:
    dying = Dying(tmp_path / "p.jsonl.partial")
    with pytest.raises(GenerateError):
        evaluate(dying, couplets(5), ALL, output=tmp_path / "p.jsonl")
    assert dying.seen == 3  # SIGKILL at this moment would have lost nothing
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl.partial"]
    assert answers_in(tmp_path / "p.jsonl.partial") == 3

    # Other models, one that dies at once and one that ends, leave those answers where they are.
    def fail(_: Conversation) -> str:
        raise GenerateError("no")

    told: list[str] = []
    with pytest.raises(GenerateError):
        evaluate(Scripted("m", fail), couplets(5), ALL, output=tmp_path / "p.jsonl", note=told.append)
    evaluate(Scripted("m", perfect), couplets(5), ALL, output=tmp_path / "p.jsonl", note=told.append)
    assert told == 2 * [
        f"{tmp_path / 'p.jsonl.partial'} holds 3 of 5 answers that were begun otherwise "
        '(model "dying" before, "m" now). It stays there; this begins anew.'
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.jsonl", "p.jsonl.partial"]
    assert answers_in(tmp_path / "p.jsonl.partial") == 3


def test_the_same_model_goes_on_where_it_died(tmp_path: Path) -> None:
    output, told, asked = tmp_path / "p.jsonl", list[str](), list[str]()

    def answer(conversation: Conversation) -> str:
        asked.append(conversation.key)
        if len(asked) == 4:
            raise GenerateError("out of memory")
        return perfect(conversation)

    with pytest.raises(GenerateError):
        evaluate(Scripted("m", answer), couplets(5), ALL, output=output)
    cut = evaluate(Scripted("m", answer), couplets(5), ALL, output=output, note=told.append)
    assert asked == ["0", "1", "2", "3", "3", "4"]  # 3 wasn't answered
    assert told == ["m: 3 of 5 answers were there already."]
    whole = evaluate(Scripted("m", perfect), couplets(5), ALL, output=tmp_path / "q.jsonl")
    assert output.read_bytes() == (tmp_path / "q.jsonl").read_bytes()
    assert cut.to_json()["metrics"] == whole.to_json()["metrics"]
    # On the clock, and not the sum of what each answer says: an endpoint's calls are under way at once.
    assert cut.seconds is not None
    assert cut.seconds < 3 * 0.5
    assert not list(tmp_path.glob("*.partial*"))


def test_a_failure_before_the_first_answer_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: Conversation) -> str:
        raise GenerateError("no")

    with pytest.raises(GenerateError):
        evaluate(Scripted("m", fail), couplets(5), ALL, output=tmp_path / "p.jsonl")
    assert list(tmp_path.iterdir()) == []


class Stop(Exception):
    """In place of a kill."""


def stopping(what: str, rows: int) -> Watch:
    """A watch that ends the work when so many rows of this part are done."""

    def watch(now: str, done: int, _: int) -> None:
        if now == what and done >= rows:
            raise Stop

    return watch


def timeless(result: Result) -> dict[str, Any]:
    content = dict(result.content)
    for figures in (content, content.get("a", {}), content.get("b", {}), *content.get("sides", ())):
        for name in ("seconds", "tokens_per_second", "peak_memory_bytes", "predictions"):
            figures.pop(name, None)
    return content


def test_compare_goes_on_in_the_loss_of_the_base_and_in_the_answers_of_the_run(
    place: Path, tmp_path: Path
) -> None:
    found, run = read_questions(str(place / "valid.jsonl")), str(place / "runs/lora")
    base, seen, told = str(place / "qwen2"), list[tuple[str, int]](), list[str]()

    def attempt(output: str, watch: Watch | None = None) -> Result:
        return measure_several((run,), found, ALL, SHORT, output=tmp_path / output, dtype="fp32",
                           forgetting=False, watch=watch, note=told.append)  # fmt: skip

    whole = attempt("whole.jsonl")
    assert told == []
    for watch in (stopping(f"{base}: loss", 1), stopping(f"{run} answers", 8)):
        with pytest.raises(Stop):
            attempt("cut.jsonl", watch)
    kept = sorted(file.name for file in tmp_path.glob("cut*"))
    assert kept == ["cut.jsonl.a.partial", "cut.jsonl.b.partial"]
    cut = attempt("cut.jsonl", lambda what, done, _: seen.append((what, done)))
    assert told[0] == f"{base}: 8 of 8 losses were there already."
    assert told[1:] == [f"{name}: 8 of 8 answers were there already." for name in (base, run)]
    assert {done for _, done in seen} == {8}, "nothing was computed twice"
    assert timeless(cut) == timeless(whole)
    assert not list(tmp_path.glob("*.partial*"))


def test_the_result_of_the_same_rows_is_found_where_it_was_begun(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, found = str(place / "qwen2"), read_questions(str(place / "valid.jsonl"))
    other = read_questions(str(place / "valid.jsonl"), limit=2)
    for questions, rows in ((found, 8), (other, 2)):
        with pytest.raises(Stop):
            measure_one(model, questions, ALL, SHORT, dtype="fp32", watch=stopping(f"{model} answers", rows))
    told: list[str] = []
    names = [
        measure_one(model, questions, ALL, SHORT, dtype="fp32", note=told.append).file.name
        for questions in (found, other, found)
    ]
    # Each where its worklog was; the third time the result is there, and is measured anew.
    assert names == ["qwen2.valid.eval.json", "qwen2.valid-2.eval.json", "qwen2.valid.eval.json"]
    assert told == [f"{model}: {n} of {n} answers were there already." for n in (8, 2)]


def test_other_settings_begin_anew(place: Path, tmp_path: Path) -> None:
    model, found, told = str(place / "qwen2"), read_questions(str(place / "valid.jsonl")), list[str]()
    output = tmp_path / "out.jsonl"
    with pytest.raises(Stop):
        measure_one(model, found, ALL, SHORT, output=output, watch=stopping(f"{model} answers", 8))
    longer = Sampling(max_new_tokens=7)
    result = measure_one(model, found, ALL, longer, output=output, note=told.append)
    assert told == [
        f"{output}.partial holds 8 of 8 answers that were begun otherwise "
        "(settings.max_new_tokens 6 before, 7 now). It stays there; this begins anew."
    ]
    assert result.content["sampling"] == {"max_new_tokens": 7}
