"""`tunesmith generate` as people run it: files in and out, one prompt, interruptions, wrong words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infer.made_run import made_run
from tunesmith.cli.main import main
from tunesmith.infer.local import LocalModel, load
from tunesmith.records import Completion

ALPACA = [
    {"instruction": "續寫", "input": "白日依山盡，黃河入海流。", "output": "欲窮千里目，更上一層樓。"},
    {"instruction": "Hi", "input": "", "output": "Hello"},
    {"instruction": "How do I ask for leave?", "input": "", "output": "Ask the office."},
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    made_run(folder / "run")
    return folder


@pytest.fixture
def run(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the verb in this process, in a folder with test.json; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps(ALPACA, ensure_ascii=False), encoding="utf-8")

    def call(*words: str, model: str = str(models / "run")) -> tuple[int, str, str]:
        monkeypatch.setattr(
            sys, "argv", ["tunesmith", "generate", model, *words, "--dtype", "fp32", "max_new_tokens=6"]
        )
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, told.out, told.err

    return call


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


FILES = ("--input", "test.json", "--output", "out.jsonl")


def test_a_file_of_any_format(run: Run, models: Path) -> None:
    code, out, err = run(*FILES)
    assert (code, out) == (0, "out.jsonl\n")
    assert "3 prompts answered" in err
    found = lines("out.jsonl")
    assert [line["references"] for line in found] == [[row["output"]] for row in ALPACA]
    assert "黃河入海流" in found[0]["prompt"]
    model = load(str(models / "run"), dtype="fp32")
    assert [line["prediction"] for line in found] == [
        model.chat(line["prompt"], max_new_tokens=6) for line in found
    ]
    Path("prompts.txt").write_text("Hi\n你好\n", encoding="utf-8")
    assert run("--input", "prompts.txt", "--output", "lines.jsonl", "num_beams=2")[0] == 0
    assert [line["prompt"] for line in lines("lines.jsonl")] == ["Hi", "你好"]
    assert lines("lines.jsonl")[0]["settings"] == {"max_new_tokens": 6, "num_beams": 2}


def test_json_is_one_object(run: Run) -> None:
    code, out, _ = run(*FILES, "--json")
    summary = json.loads(out)
    assert code == 0
    assert (summary["prompts"], summary["answered"], summary["output"]) == (3, 3, "out.jsonl")
    assert sum(summary["finish"].values()) == 3
    code, out, _ = run("--prompt", "Hi", "--json")
    assert json.loads(out)["prompt"] == "Hi"


def test_one_prompt_answers_on_stdout(run: Run, models: Path) -> None:
    model = load(str(models / "run"), dtype="fp32")
    code, out, err = run("--prompt", "你好", "--system", "Be short.")
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "你好"}]
    assert (code, out) == (0, model.chat(turns, max_new_tokens=6) + "\n")
    assert "The limit was reached" in err
    code, out, err = run("--prompt", "你好", "temperature=3", "seed=1", "num_return_sequences=3")
    assert "[3]" in err


def test_one_prompt_with_log_probabilities_shows_them_beside_the_answer(run: Run) -> None:
    plain = run("--prompt", "你好")[1]
    code, out, err = run("--prompt", "你好", "logprobs=2")
    assert (code, out) == (0, plain)
    line = json.loads(run("--prompt", "你好", "logprobs=2", "--json")[1])
    rows = err.partition("likeliest there")[2].splitlines()[1:]
    for one, row in zip(line["logprobs"], rows, strict=False):
        cut = "\ufffd" in one["token"]
        assert row.startswith(f"<{bytes(one['bytes']).hex(' ')}>" if cut else json.dumps(one["token"])[:2])
        assert f"{one['logprob']:.3f}" in row
        assert f"{one['top_logprobs'][1]['logprob']:.3f}" in row
    many = ("temperature=3", "seed=1", "num_return_sequences=2", "logprobs=0")
    err = run("--prompt", "你好", *many)[2]
    assert err.count("log-probability") == 2
    assert "likeliest there" not in err


def test_a_seed_that_changes_nothing_is_told(run: Run) -> None:
    told = "seed=1 changes nothing: no token is drawn"
    assert told in run("--prompt", "Hi", "seed=1")[2]
    assert "changes nothing" not in run("--prompt", "Hi", "seed=1", "temperature=0.5")[2]


def test_one_prompt_of_bytes_that_are_not_utf8(run: Run) -> None:
    code, out, err = run("--prompt", "caf\udce9", "--system", "\udcff", "stop=\udcfe", "--json")
    assert (code, json.loads(out)["prompt"]) == (0, "system: \ufffd\nuser: caf\ufffd"), err


def test_a_pipe_gets_what_the_model_wrote(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Completion("a\tb\x1b[2J\r\n山 [bold]", "stop", 1, 1)
    monkeypatch.setattr(LocalModel, "complete", lambda *_: iter([[answer]]))
    assert run("--prompt", "Hi")[1] == answer.text + "\n"


def test_an_output_that_is_there(run: Run) -> None:
    assert run(*FILES)[0] == 0
    before = Path("out.jsonl").read_bytes()
    code, _, err = run(*FILES)
    assert code == 1
    assert "--resume to continue it, --force to replace it" in err
    assert "out.jsonl is there already" in run(*FILES, model="no/such/model")[2], (
        "told before the model loads"
    )
    whole = before.splitlines(keepends=True)
    Path("out.jsonl").write_bytes(whole[0] + whole[1][:9])
    code, _, err = run(*FILES, "--resume")
    assert (code, Path("out.jsonl").read_bytes()) == (0, before)
    assert "3 prompts answered (1 were there already)" in err
    assert run(*FILES, "--force", "repetition_penalty=2")[0] == 0
    assert lines("out.jsonl")[0]["settings"]["repetition_penalty"] == 2


WRONG: list[tuple[list[str], int, str]] = [
    ([], 2, "give --input FILE and --output FILE, or --prompt TEXT"),
    (["--input", "test.json"], 2, "--output FILE is missing"),
    (["--output", "out.jsonl"], 2, "--input FILE is missing"),
    (["--input", "nope.txt"], 2, "there is no file nope.txt"),
    (["--prompt", "x", "--output", "out.jsonl"], 2, "--prompt asks for one answer on stdout"),
    (["--prompt", " "], 2, "--prompt is empty"),
    ([*FILES, "--system", "x"], 2, "--system goes with --prompt"),
    ([*FILES, "--resume", "--force"], 2, "give one of them"),
    (["--input", "test.json", "--output", "./test.json", "--force"], 2, "is the file of the prompts"),
    ([*FILES, "max_length=9", "top_p=2"], 2, "max_length counts prompt and answer"),
    ([*FILES, "tempratur=1"], 2, "did you mean 'temperature'"),
    ([*FILES, "hot"], 2, "'hot' isn't a setting"),
    ([*FILES, "--batch-size", "0"], 2, "--batch-size"),
    (["--input", "nowhere.json", "--output", "out.jsonl"], 1, "nowhere.json"),
    (["--input", "empty.txt", "--output", "out.jsonl"], 1, "empty"),
    ([*FILES, "pad_token_id=99999"], 2, "no such token"),
    (["--input", "test.json", "--output", "folder"], 1, "is a folder"),
    (["--input", "long.txt", "--output", "out.jsonl"], 1, "long.txt:2: the prompt has"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[case[2][:30] for case in WRONG])
def test_wrong_words_are_explained_and_leave_nothing(
    run: Run, words: list[str], code: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "long.txt").write_text("short\n" + "word " * 700 + "\n")
    (tmp_path / "folder").mkdir()
    ended, out, err = run(*words)
    assert (ended, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_run_that_is_not_finished(run: Run, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "job.yaml").write_text("job: {}\n")
    code, _, err = run("--prompt", "Hi", model="half")
    assert (code, "its training was interrupted" in err) == (1, True)
