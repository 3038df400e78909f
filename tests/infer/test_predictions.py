"""Answers to a file: one line a prompt, in order, continued by the same model and settings only."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.families import save_tiny
from tests.infer.made_run import made_run
from tests.infer.test_generate import PROMPTS, asked
from tunesmith.errors import RunError, UsageError
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel, load
from tunesmith.infer.predictions import Summary, write_predictions
from tunesmith.records import Conversation, Message, Origin
from tunesmith.settings import build
from tunesmith.worklog import read


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
    before = output.read_bytes()
    with pytest.raises(UsageError, match="did you mean 'resume'"):
        write_predictions(model, asked(), output, existing="resum")  # type: ignore[arg-type]
    assert output.read_bytes() == before
    with pytest.raises(RunError, match="is a folder"):
        write_predictions(model, asked(), tmp_path)


class Stop(Exception):
    """In place of Ctrl-C."""


def interrupted(model: LocalModel, output: Path, after: int) -> Path:
    """Stop when so many prompts are answered, batches of two; returns what is left of it."""

    def watch(summary: Summary) -> None:
        if summary.answered == after:
            raise Stop

    with pytest.raises(Stop):
        write_predictions(model, asked(), output, watch=watch)
    assert not output.exists()
    return output.with_name(f"{output.name}.partial")


def kept(partial: Path) -> list[str]:
    """The prompts that a worklog has answers to."""
    worklog = read(partial)
    assert worklog is not None
    return [line["prompt"] for _, line in sorted(worklog.rows("answers").items())]


@pytest.mark.parametrize(("after", "batches"), [(1, 1), (2, 1), (3, 2), (6, 3)])
def test_a_resumed_file_equals_one_that_was_never_interrupted(
    model: LocalModel, tmp_path: Path, after: int, batches: int
) -> None:
    write_predictions(model, asked(), tmp_path / "whole.jsonl")
    cut = tmp_path / "cut.jsonl"
    partial = interrupted(model, cut, after)
    assert len(kept(partial)) == 2 * batches
    # What a kill may leave: a whole line of a batch that isn't, and half a line, cut within a character.
    half = '{"kind": "answers", "at": 0, "left": 1, "row": {}}\n{"kind": "answers", "row": "山'.encode()[:-1]
    partial.write_bytes(partial.read_bytes() + half)
    summary = write_predictions(model, asked(), cut, existing="resume")
    assert cut.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (summary.resumed, summary.answered) == (2 * batches, 6 - 2 * batches)
    assert {file.name for file in tmp_path.iterdir()} == {"whole.jsonl", "cut.jsonl"}


def test_another_batch_size_goes_on(model: LocalModel, tmp_path: Path) -> None:
    write_predictions(model, asked(), tmp_path / "whole.jsonl")
    interrupted(model, tmp_path / "cut.jsonl", 3)
    model.batch_size = 3  # memory was short, or there is more of it now: batches fall otherwise
    summary = write_predictions(model, asked(), tmp_path / "cut.jsonl", existing="resume")
    assert (summary.resumed, summary.answered) == (4, 2)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_prompts_that_were_added_are_answered(model: LocalModel, tmp_path: Path) -> None:
    write_predictions(model, asked(), tmp_path / "whole.jsonl")
    output = tmp_path / "a.jsonl"
    write_predictions(model, asked(PROMPTS[:4]), output)
    summary = write_predictions(model, asked(), output, existing="resume")
    assert (summary.resumed, summary.answered) == (4, 2)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    summary = write_predictions(model, asked(), output, existing="resume")
    assert (summary.resumed, summary.answered) == (6, 0)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_is_left_is_not_begun_anew_unasked(model: LocalModel, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    before = interrupted(model, output, 2).read_bytes()
    with pytest.raises(
        RunError, match=r"An interrupted call left 2 of 6 answers in .*a\.jsonl\.partial"
    ) as caught:
        write_predictions(model, asked(), output)
    assert "--resume to continue it, --force to begin anew" in caught.value.fix
    assert (tmp_path / "a.jsonl.partial").read_bytes() == before
    summary = write_predictions(model, asked(), output, existing="replace")
    assert (summary.resumed, summary.answered) == (0, 6)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_second_process_is_refused(model: LocalModel, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    refused: list[RunError] = []

    def watch(_: Summary) -> None:
        for existing in ("refuse", "resume", "replace"):
            with pytest.raises(RunError, match="is being written by another process") as caught:
                write_predictions(model, asked(), output, existing=existing)  # type: ignore[arg-type]
            refused.append(caught.value)

    write_predictions(model, asked()[:1], output, watch=watch)
    assert len(refused) == 3
    assert len(rows(output)) == 1


def test_resume_without_a_file_just_begins(model: LocalModel, tmp_path: Path) -> None:
    write_predictions(model, asked(), tmp_path / "a.jsonl", existing="resume")
    assert len(rows(tmp_path / "a.jsonl")) == 6


@pytest.fixture
def begun(model: LocalModel, tmp_path: Path) -> Iterator[Path]:
    output = tmp_path / "begun.jsonl"
    partial = interrupted(model, output, 3)
    before = partial.read_bytes()
    yield output
    assert partial.read_bytes() == before, "refused means untouched"


def refusal(model: LocalModel, output: Path, prompts: list[Conversation] | None = None) -> str:
    """What a continuation is refused for."""
    with pytest.raises(RunError, match="can't be continued: it was begun otherwise") as caught:
        write_predictions(model, prompts or asked(), output, existing="resume")
    return "; ".join(caught.value.details)


def test_only_the_same_prompts_model_and_settings_continue(model: LocalModel, begun: Path) -> None:
    assert refusal(model, begun, asked(PROMPTS[1:])).startswith("prompts ")
    assert refusal(model, begun, asked(PROMPTS[:2])).startswith("prompts ")
    model.sampling = sampling(temperature=0.5, top_p=0.9)
    told = "settings.temperature 1.0 before, 0.5 now; settings.top_p not set before, 0.9 now"
    assert refusal(model, begun) == told
    model.sampling = sampling()
    name, model.name = model.name, "another"
    try:
        assert refusal(model, begun) == f'model "{name}" before, "another" now'
    finally:
        model.name = name


def test_only_the_same_weights_template_and_number_format_continue(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    output = tmp_path / "begun.jsonl"
    name, few = str(run.path), sampling(max_new_tokens=2)
    interrupted(load(name, dtype="fp32", sampling=few), output, 1)

    def refused(**how: str) -> str:
        return refusal(load(name, sampling=few, **{"dtype": "fp32", **how}), output)

    assert refused(template="alpaca").startswith("template ")
    assert refused(dtype="bf16") == 'dtype "float32" before, "bfloat16" now'
    # Trained anew under the same name.
    file = run.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: tensor * 1.01 for key, tensor in tensors.items()}, file, metadata={"format": "pt"})
    assert refused().startswith("weights ")
    # The same of a file that is whole: each line says what made it.
    output.with_name("begun.jsonl.partial").unlink()
    line = {"id": "0", "prompt": PROMPTS[0], "model": name}
    for more, words in (
        ({}, "line 1 doesn't say its weights"),
        ({"weights": "f"}, "line 1 has other weights"),
    ):
        output.write_text(json.dumps({**line, **more}) + "\n", encoding="utf-8")
        before = output.read_bytes()
        with pytest.raises(RunError, match=words):
            write_predictions(load(name, dtype="fp32", sampling=few), asked(), output, existing="resume")
        assert output.read_bytes() == before


def test_a_base_trained_anew_has_other_weights(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    first = load(str(folder), dtype="fp32").weights
    assert load(str(folder), dtype="bf16").weights == first
    file = folder / "model.safetensors"
    save_file({key: t * 1.01 for key, t in load_file(file).items()}, file, metadata={"format": "pt"})
    assert load(str(folder), dtype="fp32").weights != first


def test_a_file_of_something_else_is_not_continued(model: LocalModel, tmp_path: Path) -> None:
    for number, content in enumerate(("a poem\nof two lines\n", "[1]\n", '{"id": "0"}\n')):
        output = tmp_path / f"{number}.txt"
        output.write_text(content)
        with pytest.raises(RunError, match="can't be continued"):
            write_predictions(model, asked(), output, existing="resume")
        assert output.read_text() == content


def test_a_disk_that_is_full_keeps_whole_batches(model: LocalModel, tmp_path: Path) -> None:
    write_predictions(model, asked(), tmp_path / "whole.jsonl")
    worklog = interrupted(model, tmp_path / "cut.jsonl", 3).read_bytes()
    output = tmp_path / "full.jsonl"
    # The first batch, and a bit more than the first line of the second.
    room = len(b"".join(worklog.splitlines(keepends=True)[:4])) + 20
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        with pytest.raises(RunError, match="larger than the limit"):
            write_predictions(model, asked(), output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not output.exists()
    assert len(kept(tmp_path / "full.jsonl.partial")) == 2
    summary = write_predictions(model, asked(), output, existing="resume")
    assert summary.resumed == 2
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_path_that_cannot_be_written_is_told(model: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        write_predictions(model, asked(), tmp_path / "file" / "a.jsonl")
