"""`runs list` and `runs show`: what they print, and what they never import."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.evaluate.made_run import PROMPT, made_run

HEAVY = ("torch", "transformers", "pydantic", "pyarrow", "numpy", "matplotlib")
MAIN = "import sys; from tunesmith.cli.main import main; main()"


def tunesmith(*words: str, cwd: Path, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, env=environment
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, name in enumerate(("old", "new", "詩-1")):
        run = made_run(tmp_path / "runs" / name, finished=name != "new")
        os.utime(run.job_file, (1_700_000_000 + number, 1_700_000_000 + number))
    return tmp_path


def test_list_shows_every_run_the_newest_last(runs: Path) -> None:
    done = tunesmith("runs", "list", cwd=runs)
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["old", "new", "詩-1"]
    assert lines[0].split()[1:9] == [
        "finished",
        "smollm2-135m",
        "1197",
        "40",
        "3.840",
        "->",
        "2.712",
        lines[0].split()[8],
    ]
    assert "unfinished" in lines[1]
    # Chinese is two cells wide: columns stay in line.
    columns = {cell_len(line[: line.index("smollm2")]) for line in lines}
    assert columns == {head.index("model")}


def test_a_terminal_gets_the_curve_in_colours_a_pipe_none(runs: Path) -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-c", MAIN, "runs", "show", "old"]
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(words, cwd=runs, env=environment, stdin=slave, stdout=slave, stderr=slave):
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal's end is told
            while data := os.read(master, 65536):
                shown += data
    os.close(master)
    text = shown.decode()
    assert "\x1b[36m⠒⠒" in text
    assert "\x1b[1;33m●" in text
    assert "\u241b" not in text, "no escape code is shown as a picture"
    piped = tunesmith("runs", "show", "old", cwd=runs).stdout
    assert "⠒⠒ training loss" in piped
    assert not {"\x1b", "\u241b"} & set(piped)


def test_list_json(runs: Path) -> None:
    lines = json.loads(tunesmith("runs", "list", "--json", cwd=runs).stdout)
    assert [line["name"] for line in lines] == ["old", "new", "詩-1"]
    assert lines[0]["valid_loss"] == {"before": 3.84, "best": pytest.approx(2.7121, abs=1e-4)}
    assert (lines[0]["rows"], lines[0]["steps"], lines[1]["state"]) == (1197, 40, "unfinished")


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    done = tunesmith("runs", "list", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "No runs in runs" in done.stderr
    assert tunesmith("runs", "list", "--json", cwd=tmp_path).stdout == "[]\n"


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = tunesmith("runs", "list", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no folder nowhere" in done.stderr


def test_show_tells_the_whole_story(runs: Path) -> None:
    done = tunesmith("runs", "show", "old", cwd=runs)  # a name in runs/ is enough
    assert (done.returncode, done.stderr) == (0, "")
    settings, counts = ("train.learning_rate", "0.001"), ("1,197 kept", "1 bad rows")
    samples = (PROMPT.split("\n")[1], "今日無人見，空山有鳥來。", "坐來山水操")
    for text in (*settings, *counts, "3.84 ┤●", "valid loss", "1.77 GiB", *samples, "runs/old/adapter"):
        assert text in done.stdout, text


def test_show_json_is_one_object_and_never_holds_nan(runs: Path) -> None:
    with (runs / "runs/old/metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": NaN, "tokens": 1}\n')
    (runs / "runs/old/eval").mkdir()
    result = '{"kind": "evaluation", "model": "m", "n": 1, "metrics": {}, "loss": NaN}'
    (runs / "runs/old/eval/x.json").write_text(result)
    shown = json.loads(tunesmith("runs", "show", "runs/old", "--json", cwd=runs).stdout)
    assert shown["job"]["train"]["learning_rate"] == 0.001
    assert (shown["steps"], shown["steps_planned"]) == (41, 40)
    assert shown["curve"]["valid_loss"][0] == [0, 3.84]
    assert len(shown["samples"]) == 2
    assert shown["results"][0]["loss"] is None


def test_secrets_in_a_job_are_never_shown(tmp_path: Path) -> None:
    job = {"job": {"model": "m", "track_options": {"api_key": "abc123", "hub_token": "hf_" + "x" * 30}}}
    made_run(tmp_path / "runs" / "r", job=job)
    for words in (("show", "r"), ("show", "r", "--json")):
        shown = tunesmith("runs", *words, cwd=tmp_path).stdout
        assert "api_key" in shown
        assert "abc123" not in shown
        assert "hf_x" not in shown


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("show", "nope"), 1, "nope isn't the folder of a run"),
        (("show", "odl"), 1, "odl isn't the folder of a run. Did you mean runs/old?"),
        (("show", "runs/odl"), 1, "Did you mean runs/old?"),
        (("show",), 2, "takes one RUN"),
        (("list", "a", "b"), 2, "takes one FOLDER"),
        (("list", "--nope"), 2, "--nope"),
    ],
)
def test_wrong_words(runs: Path, words: tuple[str, ...], code: int, text: str) -> None:
    done = tunesmith("runs", *words, cwd=runs)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_job_is_one_message(runs: Path) -> None:
    job = runs / "runs/old/job.yaml"
    job.write_text("a: [", encoding="utf-8")
    os.utime(job, (1_700_000_000, 1_700_000_000))
    done = tunesmith("runs", "show", "old", cwd=runs)
    assert done.returncode == 1
    assert "job.yaml can't be read" in done.stderr
    assert "Traceback" not in done.stderr
    # The list still shows the others.
    listed = tunesmith("runs", "list", cwd=runs)
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["old", "damaged"],
        ["new", "unfinished"],
        ["詩-1", "finished"],
    ]
    assert "old/job.yaml can't be read" in listed.stderr
    with (runs / "runs/new/metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n{"step": 40}\n')
    # All but the age, which goes on meanwhile.
    again = tunesmith("runs", "list", cwd=runs)
    rows = [[line.split()[:-2] for line in done.stdout.splitlines()] for done in (listed, again)]
    assert rows[0] == rows[1]
    shown = tunesmith("runs", "show", "new", cwd=runs)
    assert (shown.returncode, "the line is damaged" in shown.stderr) == (1, True)


@pytest.mark.parametrize("words", [("list",), ("show", "old"), ("list", "--json")])
def test_nothing_heavy_is_imported(runs: Path, words: tuple[str, ...]) -> None:
    code = f"""
import atexit, sys
atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr))
{MAIN}"""
    assert tunesmith("runs", *words, cwd=runs, code=code).stderr.strip() == "[]"
