"""A test from files and from models: what is shown, what is refused, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.evaluate.blind.made_test import made, made_test, refuse, write_answers
from tests.evaluate.conftest import rows, write_rows
from tunesmith.errors import DataError, RunError, SettingsError, UsageError
from tunesmith.evaluate.blind.new import Request, new
from tunesmith.records import Conversation
from tunesmith.rundir import read_jsonl


class Model:
    """Answers into a file as `generate` does, and is interrupted after so many answers of a call."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.room = 10**6

    def __call__(self, name: str, prompts: Sequence[Conversation], file: Path) -> None:
        self.called.append(name)
        done = len(read_jsonl(file))
        with file.open("a", encoding="utf-8") as out:
            for prompt in prompts[done:]:
                if not self.room:
                    raise KeyboardInterrupt
                self.room -= 1
                self.asked.append((name, prompt.key))
                line = {"id": prompt.key, "prompt": prompt.question, "prediction": f"{name}: {prompt.key}"}
                out.write(json.dumps(line) + "\n")


def test_rows_are_drawn_and_asked_of_both_models(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "valid.jsonl", rows(30))
    model = Model()
    result = new(Request("base", "tuned", str(data), items=12), model, output=tmp_path / "test")
    assert (result.pairs, result.repeats, result.alike) == (12, 1, 0)
    asked = [key for name, key in model.asked if name == "base"]
    assert asked == [key for name, key in model.asked if name == "tuned"]
    assert len(set(asked)) == 12
    assert result.test.key()["a"]["model"] == "base"


def test_an_interrupted_one_goes_on_with_the_same_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_rows(tmp_path / "valid.jsonl", rows(30))
    request, model = Request("base", "tuned", str(data), items=10), Model()
    for room in (4, 3, 8):
        model.room = room
        with pytest.raises(KeyboardInterrupt):
            new(request, model)
    model.room = 100
    made_now = new(request, model)
    assert str(made_now.test.path) == "blind/valid"
    assert len(model.asked) == 20  # nothing was asked twice
    assert model.called == ["base", "base", "base", "tuned", "tuned"]  # nor loaded to find all answered
    keys = {place["row"] for place in made_now.test.key()["items"]}
    assert keys == {key for _, key in model.asked}
    # The next one is another test, and what was begun with other words isn't touched.
    assert str(new(request, model).test.path) == "blind/valid-2"


def test_what_was_begun_isnt_continued_with_other_words(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "valid.jsonl", rows(8))
    model = Model()
    model.room = 2
    with pytest.raises(KeyboardInterrupt):
        new(Request("base", "tuned", str(data)), model, output=tmp_path / "test")
    for other in (Request("base", "other", str(data)), Request("base", "tuned", str(data), items=3)):
        with pytest.raises(RunError, match="another blind test was begun"):
            new(other, model, output=tmp_path / "test")
    write_rows(data, rows(9))
    with pytest.raises(RunError, match="another blind test was begun"):
        new(Request("base", "tuned", str(data)), model, output=tmp_path / "test")


def test_rows_with_one_answer_from_both_arent_shown(tmp_path: Path) -> None:
    result = made(tmp_path, 10, lambda i: f"甲{i}", lambda i: f" 甲{i}\n" if i < 3 else f"乙{i}")
    assert (result.pairs, result.alike) == (7, 3)
    assert [row["row"] for row in result.test.key()["alike"]] == ["row-0", "row-1", "row-2"]
    assert all("甲0" not in item["left"] + item["right"] for item in result.test.public()["items"])
    with pytest.raises(DataError, match="answer all 4 prompts alike"):
        made(tmp_path / "same", 4, str, str)


def test_a_file_beside_a_model(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "valid.jsonl", rows(6))
    old = tmp_path / "old.jsonl"
    model = Model()
    prompts = [json.loads(line)["instruction"] for line in data.read_text(encoding="utf-8").splitlines()]
    lines = [{"id": str(i), "prompt": prompt, "prediction": "舊"} for i, prompt in enumerate(prompts)]
    write_rows(old, lines)
    result = new(Request(str(old), "tuned", str(data)), model, output=tmp_path / "test")
    assert result.pairs == 6
    assert {name for name, _ in model.asked} == {"tuned"}
    write_rows(old, [*lines[:4], {**lines[4], "prompt": "別的"}])
    with pytest.raises(DataError, match="doesn't answer 2 of the 6 rows") as refused:
        new(Request(str(old), "tuned", str(data)), refuse, output=tmp_path / "other")
    assert refused.value.details == ("5: there is no answer", "4: it was asked something else")
    assert not (tmp_path / "other").exists()


def test_two_files_must_answer_the_same_prompts(tmp_path: Path) -> None:
    a = write_answers(tmp_path / "a.jsonl", str, 5, "a")
    b = write_answers(tmp_path / "b.jsonl", lambda i: f"b{i}", 7, "b")
    b.write_text(b.read_text(encoding="utf-8").replace(json.dumps("第2題")[1:-1], "other"), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        new(Request(str(a), str(b)), refuse, output=tmp_path / "test")
    assert list(refused.value.details) == [
        f"row-5: not in {a}", f"row-6: not in {a}", "row-2: the prompts differ"
    ]  # fmt: skip
    assert not (tmp_path / "test").exists()


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    good = {"id": 1, "prompt": "p", "prediction": "x"}
    bad = write_rows(tmp_path / "bad.jsonl", [good, good, {"id": 2}, {**good, "id": 3, "prediction": None}])
    bad.write_text(bad.read_text(encoding="utf-8") + "[1]\nnot json\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        new(Request(str(bad), "none.jsonl"), refuse)
    told = "\n".join(refused.value.details)
    for number, what in [(2, "there already"), (3, "prompt, prediction is missing"), (4, "isn't a text"),
                         (5, "isn't an object"), (6, "isn't JSON")]:  # fmt: skip
        assert f"{bad}:{number}: " in told
        assert what in told
    assert "There is no file none.jsonl" in told


@pytest.mark.parametrize(
    ("request_", "error", "what"),
    [
        (Request("a", "b"), UsageError, "There are no prompts to ask a and b"),
        (Request("a", "b", "x.jsonl", settings={"num_return_sequences": 2}), SettingsError, "several"),
        (Request("a", "b", "x.jsonl", repeats=0.9), UsageError, "can't be drawn"),
        (Request("a", "b", "nothing.jsonl"), DataError, "nothing.jsonl"),
    ],
)  # fmt: skip
def test_wrong_requests(request_: Request, error: type, what: str) -> None:
    with pytest.raises(error, match=what):
        new(request_, refuse)


def test_a_folder_that_is_used_is_left_alone(tmp_path: Path) -> None:
    test = made_test(tmp_path)
    before = test.test_file.read_bytes()
    with pytest.raises(RunError, match="is a blind test already"):
        made_test(tmp_path)
    assert test.test_file.read_bytes() == before
    with pytest.raises(RunError, match="is there already"):
        new(Request(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")), refuse, output=tmp_path)


def test_halves_of_characters_become_visible_marks(tmp_path: Path) -> None:
    test = made_test(tmp_path, 4, lambda i: f"甲\ud83d{i}", lambda i: f"乙{i}")
    assert all("�" in item["left"] + item["right"] for item in test.public()["items"])


def test_rows_of_one_id_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "valid.jsonl", [{"id": "same", **row} for row in rows(5)])
    model = Model()
    assert new(Request("base", "tuned", str(data)), model, output=tmp_path / "test").pairs == 5
