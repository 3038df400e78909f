"""`tunesmith chat` as people run it: with lines in a pipe, and at a real terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.families import save_tiny
from tests.infer.made_run import made_run
from tests.warm import Warm
from tunesmith.cli import chat as cli_chat
from tunesmith.cli.console import write
from tunesmith.infer.local import load
from tunesmith.records import Conversation, Message, Origin

COMMAND = [sys.executable, "-c", "from tunesmith.cli.main import main; main()", "chat"]
PLAIN = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    made_run(folder / "run")
    return folder


def test_lines_of_a_pipe_are_messages_and_commands(place: Path) -> None:
    lines = [
        "你好",
        "/reset",
        "/set max_new_tokens 4",
        "/set max_length 9",
        "one \\",
        "two",
        "//etc",
        "",
        "/base",
        "你好",
        "/exit",
        "never read",
    ]
    done = subprocess.run(
        [*COMMAND, "run", "do_sample=false", "max_new_tokens=6", "stop=\n", "--dtype", "fp32"],
        cwd=place,
        env=PLAIN,
        input="\n".join(lines).encode(),
        capture_output=True,
    )
    errors = done.stderr.decode()
    assert "max_length counts prompt and answer" in errors
    assert "max_new_tokens is 4." in errors
    assert "Traceback" not in errors
    assert "Warning" not in errors
    assert done.returncode == 1, "a command failed, and nobody was there to see it"

    model = load(str(place / "run"), dtype="fp32")
    settings = {"max_new_tokens": 4, "stop": "\n"}
    expected = [model.chat("你好", max_new_tokens=6, stop="\n")]
    turns: list[dict[str, str]] = []
    for text in ("one \ntwo", "/etc"):
        turns.append({"role": "user", "content": text})
        expected.append(model.chat(turns, **settings))
        turns.append({"role": "assistant", "content": expected[-1]})
    with model.base():
        expected.append(model.chat([*turns, {"role": "user", "content": "你好"}], **settings))
    assert done.stdout.decode() == "".join(answer + "\n" for answer in expected), "answers and nothing else"
    assert errors.count("tokens/s]") == 4


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere/"], 1, "Error: "),
        (["base", "temperature=0", "num_beams=3"], 2, "set do_sample false"),
        (["base", "num_beams=3"], 2, "knows its answer only at the end"),
        (["plain-base"], 1, "--template"),
    ],
)
def test_what_cannot_work_is_told_and_ends(
    place: Path,
    words: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tunesmith.cli.main import main

    if words == ["plain-base"]:
        save_tiny("gpt2", place / "plain-base")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["tunesmith", "chat", *words])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    assert end.value.code == code
    assert message in told.err
    assert told.out == ""


class Terminal:
    """The real command at a real pseudo-terminal."""

    def __init__(self, warm: Warm, place: Path, *words: str, **variables: str) -> None:
        self.master, self.slave = pty.openpty()
        terminal = Path(os.ttyname(self.slave))
        self.process = warm.start(
            "chat", *words, folder=place, given=terminal, printed=terminal,
            variables={"TERM": "xterm", "LC_ALL": "C.UTF-8", **variables},
        )  # fmt: skip
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.seen = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """Everything up to and with `text`, which must come."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            alive = self.process.alive()
            ready, _, _ = select.select([self.master], [], [], 0.5)
            assert ready or alive, f"it ended before {text!r}; there was {self.seen!r}"
            assert ready or time.monotonic() < end, f"{text!r} didn't come; there was {self.seen!r}"
            if ready:
                self.seen += self.decoder.decode(os.read(self.master, 65536))
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        """The exit code."""
        assert self.process.ends_within(30)
        return self.process.exit_code()

    def stop(self) -> None:
        """End it, if it hasn't ended, and close the terminal."""
        if self.process.alive():
            self.process.send(signal.SIGKILL)
            self.process.exit_code()
        os.close(self.slave)
        os.close(self.master)


def never_written(place: Path) -> int:
    """A token that the model's greedy answer to 你好 doesn't hold, so that as end token it ends nothing."""
    model = load(str(place / "run"), dtype="fp32")
    model.renderer.stop_ids = frozenset()
    asked = Conversation((Message("user", "你好"),), Origin("chat", 1, 0))
    ids = model.renderer.prompt_ids(asked)
    written = model.model.generate(
        torch.tensor([ids]), max_new_tokens=480, do_sample=False, eos_token_id=None
    )
    return min(set(range(300)) - set(written[0, len(ids) :].tolist()))


CTRL_C, CTRL_D = "\x03", "\x04"


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(warm: Warm, place: Path) -> None:
    words = ["max_new_tokens=480", "do_sample=false", f"eos_token_id={never_written(place)}"]
    terminal = Terminal(warm, place, "run", *words, "--dtype", "fp32")
    try:
        terminal.until("/help lists the commands")
        terminal.until("> ")
        terminal.type("你好\r")
        terminal.until("你好")
        terminal.until("\n")
        assert select.select([terminal.master], [], [], 20)[0], "the answer is on its way"
        terminal.type(CTRL_C)
        terminal.until("(stopped)")
        terminal.until("> ")
        terminal.type("/show\r")
        terminal.until("max_new_tokens  480")
        terminal.until("> ")
        time.sleep(0.5)  # readline shows the prompt before it listens: a signal in between waits for a key
        terminal.type(CTRL_C)
        terminal.until("Ctrl-C again or Ctrl-D leaves")
        terminal.type("/set max_new_tokens 3\r")
        terminal.until("max_new_tokens is 3.")
        terminal.until("> ")
        terminal.type("Hi\r")
        terminal.until("tokens/s]")
        terminal.until("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    finally:
        terminal.stop()


def test_wide_characters_blocks_and_history_at_a_terminal(warm: Warm, place: Path, tmp_path: Path) -> None:
    words = ["run", "max_new_tokens=2", "do_sample=false", "--dtype", "fp32"]
    first = Terminal(warm, place, *words, TUNESMITH_HOME=str(tmp_path))
    try:
        first.until("> ")
        # Backspace takes a whole character and an arrow key goes over one, however wide they are.
        first.type("你好吗\x7f\x1b[D世\r")
        first.until("tokens/s]")
        first.until("> ")
        first.type('"""第一行\r')
        first.until(". ")
        first.type('second"""\r')
        first.until("tokens/s]")
        first.until("> ")
        first.type("/compare 你好\r")
        first.until("base")
        first.until("tuned")
        first.until("> ")
        first.type(f"/save {tmp_path / 'chat.json'}\r")
        first.until("2 turns.")
        first.type("/exit\r")
        assert first.end() == 0
    finally:
        first.stop()
    turns = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["messages"]
    assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["你世好", "第一行\nsecond"]
    history = tmp_path / "chat_history"
    assert "你世好" in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0, "for its owner alone"
    second = Terminal(warm, place, *words, TUNESMITH_HOME=str(tmp_path))
    try:
        second.until("> ")
        time.sleep(0.3)
        second.type("\x1b[A\x1b[A")  # /exit, then /save
        second.until("chat.json")
        second.type("\x15/exit\r")
        assert second.end() == 0
    finally:
        second.stop()


def test_ctrl_c_twice_at_the_prompt_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pressed = iter([KeyboardInterrupt, None, KeyboardInterrupt, KeyboardInterrupt])

    def read(terminal: bool) -> str:
        assert terminal
        if (error := next(pressed)) is not None:
            raise error
        return ""

    monkeypatch.setattr(cli_chat, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        cli_chat._converse(None, terminal=True)  # type: ignore[arg-type]
    assert next(pressed, "none left") == "none left", (
        "the first one only warns, and the empty line forgets it"
    )
    assert capsys.readouterr().err.count("Ctrl-D leaves") == 2


def test_an_answer_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a\x1b[2Jb\n\t山")
    assert capsys.readouterr().out == "a\x1b[2Jb\n\t山", "a file gets what the model wrote"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write("a\x1b[2Jb\n\t山\x9b")
    assert capsys.readouterr().out == "a␛[2Jb\n\t山\ufffd"


@pytest.mark.slow  # a process that imports torch
def test_bytes_that_are_not_utf8_are_answered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "do_sample=false", "max_new_tokens=2", "--system", b"caf\xe9", b"stop=caf\xe9"]
    done = subprocess.run(
        [*COMMAND, *words], cwd=place, env=PLAIN, input=b"caf\xe9\n/system\n", capture_output=True
    )
    errors = done.stderr.decode()
    assert done.returncode == 0, errors
    assert "The system prompt is: caf\ufffd" in errors
    # A terminal as stdin and a pipe as stdout.
    monkeypatch.setattr(sys, "stdin", io.StringIO("caf\udce9\n"))
    assert cli_chat._read(terminal=True) == "caf\ufffd"
