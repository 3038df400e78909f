"""The command line's frame: which verbs there are, and how every command ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.cli import main as cli
from tunesmith.settings import known_keys
from tunesmith.train.config import Job

# A verb that does what its test asks for, in place of a real one.
STAND_IN = """
import errno, os, sys, time
from pathlib import Path
import typer
from tunesmith.cli.console import err, out, print_json, print_table, table
from tunesmith.errors import DataError, SettingsError
from tunesmith.disk import new_folder

app = typer.Typer()

@app.command()
def act(what: str, more: list[str] = typer.Argument(None)) -> None:
    "Do what the test asks for."
    {body}
"""


def test_without_words_it_shows_help() -> None:
    done = _tunesmith()
    assert done.returncode == 2
    assert "Usage: tunesmith" in done.stderr
    assert done.stdout == ""


def test_help_lists_every_verb_in_the_table_s_order_with_examples() -> None:
    done = _tunesmith("--help")
    assert done.returncode == 0
    body = done.stdout.split("Commands:")[1].split("Examples:")
    assert [line.split()[0] for line in body[0].strip().splitlines()] == list(cli.VERBS)
    assert "tunesmith train my.yaml train.epochs=3" in body[1]
    assert _tunesmith("-h").stdout == done.stdout


def test_version_is_the_package_s() -> None:
    from importlib.metadata import version

    assert _tunesmith("--version").stdout == f"tunesmith {version('tunesmith')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["runs", "lsit"], "Did you mean 'list'?"),
        (["zzz"], "No such command 'zzz'"),
        (["--verison"], "--version"),
        (["runs"], "list"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_hint(words: list[str], message: str) -> None:
    done = _tunesmith(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_the_table_agrees_with_the_verb_s_module(verb: str) -> None:
    command = cli._load(verb)
    assert list(getattr(command, "commands", {})) == list(cli.VERBS[verb].verbs)


COMMANDS = [[verb, *([sub] if sub else [])] for verb in cli.VERBS for sub in cli.VERBS[verb].verbs or [""]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_each_verb_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, names = cli._load(words[0], words[1:]), words[1:]
    for name in names:
        command = command.commands[name]
    with pytest.raises(SystemExit):
        command.main(["--help"], prog_name=" ".join(["tunesmith", *words]))
    text = capsys.readouterr().out
    usage, _, examples = text.partition("Examples:")
    assert f"Usage: tunesmith {' '.join(words)}" in usage
    assert f"tunesmith {' '.join(words)}" in examples
    assert "--install-completion" not in text


def test_an_error_of_ours_is_told_with_cause_and_remedy(tmp_path: Path) -> None:
    done = _act(
        tmp_path, "raise DataError('No rows [bold]left[/].', details=['a.json:3: x'], fix='Do :smile: [y].')"
    )
    assert done.returncode == 1
    assert done.stderr == "Error: No rows [bold]left[/].\n  - a.json:3: x\nWhat to do: Do :smile: [y].\n"
    assert done.stdout == ""


def test_a_wrong_setting_ends_with_2(tmp_path: Path) -> None:
    done = _act(tmp_path, "raise SettingsError('rank is 0.')")
    assert (done.returncode, done.stderr) == (2, "Error: rank is 0.\n")


def test_an_error_on_a_narrow_terminal_is_not_cut(tmp_path: Path) -> None:
    long = "文" * 200
    done = _act(tmp_path, f"raise DataError({long!r})", env={"COLUMNS": "40"})
    assert long in done.stderr


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ("{}['x']", ["KeyError: 'x'", "--debug"]),
        ("open('/no/such/file')", ["/no/such/file: No such file or directory", "--debug"]),
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'out.json')", ["out.json: No space left"]),
        ("raise MemoryError", ["The memory isn't enough", "microbatch_tokens"]),
    ],
)
def test_any_other_error_is_short_too(tmp_path: Path, body: str, messages: list[str]) -> None:
    done = _act(tmp_path, body)
    assert done.returncode == 1
    assert all(message in done.stderr for message in messages), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("body", ["{}['x']", "raise DataError('No rows.')"])
def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path, before: bool, body: str) -> None:
    words = ["--debug", "doctor", "x"] if before else ["doctor", "x", "--debug"]
    done = _act(tmp_path, body, words=words)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "stand_in.py" in done.stderr
    assert "Error: " in done.stderr.splitlines()[-2] + done.stderr.splitlines()[-1]


def test_words_after_two_dashes_belong_to_the_verb(tmp_path: Path) -> None:
    done = _act(tmp_path, "print(what, more)", words=["doctor", "a", "--", "--debug"])
    assert done.stdout == "a ['--debug']\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    body = "with new_folder(Path('result')): print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", _script(tmp_path, body), "doctor", "x"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    start = time.perf_counter()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert time.perf_counter() - start < 10
    assert [p.name for p in tmp_path.iterdir() if "result" in p.name] == []


@pytest.mark.parametrize(
    "body",
    [
        "[print(i) for i in range(100_000)]",
        "[out.print(str(i)) for i in range(9_000)]",
        "print_json(list(range(100_000)))",
        "print(1, flush=True); time.sleep(0.5); print(2)",
    ],
)
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, body: str) -> None:
    script = _script(tmp_path, body)
    command = [sys.executable, "-c", script, "doctor", "x"]
    # Buffered, as in a person's shell: the last lines meet the closed pipe only at the end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
@pytest.mark.parametrize("encoding", ["", "gbk", "ascii"])
def test_json_is_utf8_in_any_locale(tmp_path: Path, locale: str, encoding: str) -> None:
    env = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env |= {"PYTHONIOENCODING": encoding} if encoding else {}
    done = _act(tmp_path, "print_json({'詩': '床前明月光 😀', 'file': 'a\\udcff'})", env=env)
    assert done.stdout == '{\n  "詩": "床前明月光 😀",\n  "file": "a\\udcff"\n}\n'
    assert json.loads(done.stdout)["file"] == "a\udcff"


def test_json_without_a_number_for_nan_fails_before_it_prints(tmp_path: Path) -> None:
    done = _act(tmp_path, "print_json({'loss': float('nan')})")
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_text_in_a_pipe_is_utf8_in_any_locale(tmp_path: Path, encoding: str) -> None:
    body = "out.print('answer: 好 😀'); err.print('提示'); raise DataError('壞行。')"
    done = _act(tmp_path, body, env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"})
    assert done.stdout == "answer: 好 😀\n"
    assert done.stderr == "提示\nError: 壞行。\n"


def test_a_table_in_a_pipe_keeps_every_character(tmp_path: Path) -> None:
    path = "/very/long/" * 30
    done = _act(
        tmp_path, f"print_table(table(['file', 'n'], [({path!r}, 5), ('[x] 好', None)], numbers=['n']))"
    )
    lines = done.stdout.splitlines()
    assert lines[1] == f"{path}  5"
    assert lines[2] == "[x] 好"


def test_a_table_on_a_narrow_terminal_folds_long_cells() -> None:
    import io

    from rich.console import Console

    from tunesmith.cli.console import print_table, table

    page = Console(file=io.StringIO(), force_terminal=True, width=30, color_system=None)
    print_table(table(["詩", "n"], [("床前明月光疑是地上霜舉頭望明月", 1)]), page)
    lines = page.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "".join(line.split("  ")[0].strip() for line in lines[1:]) == "床前明月光疑是地上霜舉頭望明月"


def _tunesmith(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunesmith.cli.main", *words], capture_output=True, encoding="utf-8"
    )


def _act(
    folder: Path, body: str, *, words: list[str] | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `tunesmith doctor x` in a fresh process, with a doctor that does `body`."""
    return subprocess.run(
        [sys.executable, "-c", _script(folder, body), *(words or ["doctor", "x"])],
        capture_output=True, encoding="utf-8", cwd=folder, env=os.environ | (env or {}),
    )  # fmt: skip


def _script(folder: Path, body: str) -> str:
    (folder / "stand_in.py").write_text(STAND_IN.format(body=body), encoding="utf-8")
    return (
        "import sys; sys.path.insert(0, '.')\n"
        "from tunesmith.cli import main as cli\n"
        "cli.VERBS['doctor'] = cli.Verb('stand_in', '')\n"
        "cli.main()\n"
    )


def test_settings_are_listed_by_the_command_that_messages_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", "train", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    code, out, _ = told("--settings")
    assert code == 0
    named = {line.split()[0] for line in out.splitlines() if line.strip()}
    keys = {key for key in known_keys(Job) if not key.startswith("data.train.")}
    assert keys - named == {"data", "adapter", "train"}
    assert "temperature" in named
    assert "1.0e-3" in out
    code, out, _ = told("--settings", "warmup")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["train.warmup"]
    assert told("--settings", "nosuchword")[0] == 2
    assert "A job file is missing" in told()[2]


def test_a_wrong_setting_names_that_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text("data: {train: x.jsonl}\ntrian: 1\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["tunesmith", "train", str(tmp_path / "job.yaml")])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr().err
    assert "tunesmith train --settings" in told
    assert "docs/" not in told
