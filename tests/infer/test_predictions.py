"""Answers to a file: one line a prompt, as they come, in whole lines, continued by the same settings only."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_tiny
from tests.infer.test_generate import PROMPTS, asked
from tunesmith.errors import RunError
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel, load
from tunesmith.infer.predictions import Summary, write_predictions
from tunesmith.records import Conversation, Message, Origin
from tunesmith.settings import build


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return load(str(save_tiny("llama", tmp_path_factory.mktemp("model"))), dtype="fp32")


@pytest.fixture
def model(shared: LocalModel) -> LocalModel:
    shared.sampling = sampling()
    shared.batch_size = 2
    return shared


def sampling(**settings: Any) -> Sampling:
    return build(Sampling, {"max_new_tokens": 8, "temperature": 1.0, "seed": 2, **settings})


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().decode().splitlines()]


def test_a_line_for_each_prompt_in_order(model: LocalModel, tmp_path: Path) -> None:
    output = tmp_path / "new" / "answers.jsonl"
    told: list[int] = []
    summary = write_predictions(model, asked(), output, watch=lambda s: told.append(s.answered))
    assert told == [1, 2, 3, 4, 5, 6]
    lines = rows(output)
    assert [line["prompt"] for line in lines] == PROMPTS
    assert [line["id"] for line in lines] == ["0", "1", "2", "3", "4", "5"]
    assert list(lines[0])[:4] == ["id", "prompt", "prediction", "references"]
    assert lines[0]["settings"] == {"max_new_tokens": 8, "temperature": 1.0, "seed": 2}
    assert lines[0]["model"] == model.name
    assert summary.tokens == sum(line["tokens"] for line in lines)
    assert sum(summary.finish.values()) == 6
    assert "白日依山盡" in output.read_text(encoding="utf-8"), "Chinese stays readable"


def test_references_several_turns_and_several_answers(model: LocalModel, tmp_path: Path) -> None:
    turns = (Message("system", "Short."), Message("user", "Hi"))
    row = Conversation(turns, Origin("a.jsonl", 9, 8), references=("Hello", "Hey"))
    model.sampling = sampling(num_return_sequences=3, stop="\n")
    write_predictions(model, [row], tmp_path / "a.jsonl")
    (line,) = rows(tmp_path / "a.jsonl")
    assert (line["id"], line["prompt"]) == ("8", "system: Short.\nuser: Hi")
    assert line["references"] == ["Hello", "Hey"]
    assert len(line["predictions"]) == 3
    assert line["predictions"][0]["text"] == line["prediction"]


def test_an_output_that_is_there_is_not_touched(model: LocalModel, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    output.write_text("precious\n")
    with pytest.raises(RunError, match="there already") as caught:
        write_predictions(model, asked(), output)
    assert "--resume" in caught.value.fix
    assert output.read_text() == "precious\n"
    write_predictions(model, asked(), output, existing="replace")
    assert len(rows(output)) == 6
    with pytest.raises(RunError, match="is a folder"):
        write_predictions(model, asked(), tmp_path)


class Stop(Exception):
    """In place of Ctrl-C."""


def interrupted(model: LocalModel, output: Path, after: int) -> None:
    def watch(summary: Summary) -> None:
        if summary.answered == after:
            raise Stop

    with pytest.raises(Stop):
        write_predictions(model, asked(), output, watch=watch)


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_resumed_file_equals_one_that_was_never_interrupted(
    model: LocalModel, tmp_path: Path, after: int
) -> None:
    write_predictions(model, asked(), tmp_path / "whole.jsonl")
    cut = tmp_path / "cut.jsonl"
    interrupted(model, cut, after)
    assert len(rows(cut)) == after
    # What a power failure leaves: half a line, cut in the middle of a character.
    half = '{"id": "7", "prompt": "山'.encode()[:-1]
    cut.write_bytes(cut.read_bytes() + half)
    summary = write_predictions(model, asked(), cut, existing="resume")
    assert cut.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (summary.resumed, summary.answered) == (after, 6 - after)


def test_resume_without_a_file_just_begins(model: LocalModel, tmp_path: Path) -> None:
    write_predictions(model, asked(), tmp_path / "a.jsonl", existing="resume")
    assert len(rows(tmp_path / "a.jsonl")) == 6


@pytest.fixture
def begun(model: LocalModel, tmp_path: Path) -> Iterator[Path]:
    output = tmp_path / "begun.jsonl"
    interrupted(model, output, 3)
    before = output.read_bytes()
    yield output
    assert output.read_bytes() == before, "refused means untouched"


def test_only_the_same_prompts_model_and_settings_continue(model: LocalModel, begun: Path) -> None:
    for prompts, words in (
        (asked(PROMPTS[1:]), "line 1 has another prompt"),
        (asked(PROMPTS[:2]), "it has 3 lines, and there are 2 prompts"),
    ):
        with pytest.raises(RunError, match=words):
            write_predictions(model, prompts, begun, existing="resume")
    model.sampling = sampling(temperature=0.5)
    with pytest.raises(RunError, match="line 1 has other settings"):
        write_predictions(model, asked(), begun, existing="resume")
    model.sampling = sampling()
    name, model.name = model.name, "another"
    try:
        with pytest.raises(RunError, match="line 1 has another model"):
            write_predictions(model, asked(), begun, existing="resume")
    finally:
        model.name = name


def test_a_file_of_something_else_is_not_continued(model: LocalModel, tmp_path: Path) -> None:
    for number, content in enumerate(("a poem\nof two lines\n", "[1]\n", '{"id": "0"}\n')):
        output = tmp_path / f"{number}.txt"
        output.write_text(content)
        with pytest.raises(RunError, match="can't be continued"):
            write_predictions(model, asked(), output, existing="resume")
        assert output.read_text() == content


def test_a_disk_that_is_full_leaves_whole_lines(model: LocalModel, tmp_path: Path) -> None:
    write_predictions(model, asked(), tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    room = whole.index(b"\n") + 20  # the first line and a bit of the second
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        with pytest.raises(RunError, match="larger than the limit"):
            write_predictions(model, asked(), tmp_path / "full.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "full.jsonl").read_bytes() == whole[: whole.index(b"\n") + 1]


def test_a_path_that_cannot_be_written_is_told(model: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        write_predictions(model, asked(), tmp_path / "file" / "a.jsonl")
