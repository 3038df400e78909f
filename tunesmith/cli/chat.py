"""`tunesmith chat MODEL|RUN`: answers on stdout, everything else on stderr; a terminal or a pipe."""

from __future__ import annotations

import atexit
import contextlib
import sys
from typing import Annotated

import typer

import tunesmith
from tunesmith.cli.console import err, out, print_table, table, told, typed, write
from tunesmith.errors import TunesmithError
from tunesmith.infer.chat import Chat, checked
from tunesmith.model.config import Dtype
from tunesmith.places import home
from tunesmith.records import Completion
from tunesmith.settings import parse_overrides

with contextlib.suppress(ImportError):
    import readline  # gives input() line editing and a history

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith chat runs/tang-1                       talk to what you trained
  tunesmith chat smollm2-135m --system "Answer in one sentence."
  tunesmith chat runs/tang-1 temperature=0.3 max_new_tokens=100 seed=1
  echo "白日依山盡，黃河入海流。" | tunesmith chat runs/tang-1
In a chat, /help lists the commands. Every setting: docs/generate.md
"""

PROMPT, MORE = "> ", ". "
BLOCK = '"""'  # begins and ends a message of several lines
HISTORY = 1000  # lines that are kept
SIDE_BY_SIDE = 60  # characters of a terminal that can show two columns


@app.command(epilog=EXAMPLES)
def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|RUN", help="Alias, hub id, folder, GGUF file, or the folder of a run."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="How answers are chosen, e.g. temperature=0.3."),
    ] = None,
    system: Annotated[str, typer.Option(help="The system prompt.")] = "",
    template: Annotated[
        str | None, typer.Option(help="chatml, alpaca, plain or FILE.jinja, instead of the model's own.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = "auto",
) -> None:
    """Talk to a model or a run. Without a terminal, each line of stdin is a message."""
    asked = parse_overrides(list(map(typed, settings or [])))
    for line in checked(asked).useless():  # wrong settings are told before the model is loaded
        told(line)
    talk = Chat(
        tunesmith.load(model, dtype=dtype, template=template, note=told), system=typed(system), asked=asked
    )
    terminal = sys.stdin.isatty()
    if terminal:
        _remember_lines()
        err.print(f"{talk.model.name} on {talk.model.device.name}. /help lists the commands.", style="dim")
    else:
        _read_utf8()
    if not _converse(talk, terminal):
        raise typer.Exit(1)


def _converse(talk: Chat, terminal: bool) -> bool:
    """Message by message until the end. Returns False if a message of a pipe couldn't be answered."""
    good = True
    interrupted = False
    while True:
        try:
            text = _read(terminal)
        except KeyboardInterrupt:
            # The first Ctrl-C may have been meant for an answer that has just ended.
            if interrupted or not terminal:
                raise
            interrupted = True
            err.print("\n(Ctrl-C again or Ctrl-D leaves)", style="dim")
            continue
        interrupted = False
        if text is None:
            if terminal:
                err.print()
            return good
        if not text.strip():
            continue
        try:
            if text.startswith("/") and not text.startswith("//"):
                if text.split()[0] == "/compare":
                    _compare(talk, text.partition("/compare")[2].strip())
                    continue
                said = talk.command(text)
                if said is None:
                    return good
                err.print(said)
            else:
                _answer(talk, text.removeprefix("/") if text.startswith("//") else text, terminal)
        except TunesmithError as error:
            err.print(f"Error: {error}", style="red")
            good = terminal


def _answer(talk: Chat, text: str, terminal: bool) -> None:
    pieces = talk.say(text)
    try:
        while True:
            write(next(pieces))
    except StopIteration as end:
        write("\n")
        err.print(_figures(end.value, talk), style="dim")
    except KeyboardInterrupt:
        pieces.close()
        write("\n")
        if not terminal:
            raise
        err.print("(stopped)", style="dim")


def _compare(talk: Chat, text: str) -> None:
    base, tuned = talk.compare(text)
    if out.is_terminal and out.width >= SIDE_BY_SIDE:
        print_table(table(("base", "tuned"), [(base.strip(), tuned.strip())]), out)
    else:
        write(f"[base]\n{base}\n[tuned]\n{tuned}\n")


def _remember_lines() -> None:
    """Lines of earlier chats come back with the arrow keys; they are kept for the owner's eyes alone."""
    if "readline" not in globals():
        return
    file = home() / "chat_history"
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.read_history_file(str(file))
        readline.set_history_length(HISTORY)
        atexit.register(_keep_lines, str(file))


def _keep_lines(file: str) -> None:
    with contextlib.suppress(OSError):  # a full disk is no reason to end a chat with an error
        readline.write_history_file(file)


def _figures(done: Completion, talk: Chat) -> str:
    speed = done.completion_tokens / done.seconds if done.seconds else 0.0
    text = f"[{done.completion_tokens} tokens, {speed:.1f} tokens/s]"
    if done.finish == "length":
        full = done.prompt_tokens + done.completion_tokens == talk.model.context
        text += (
            " The model's context is full, so the answer was cut."
            if full
            else " The limit was reached; /set max_new_tokens N raises it."
        )
    return text


def _read(terminal: bool) -> str | None:
    """The next message, without its line end; None at the end.

    Lines between two `BLOCK` marks are one message, and so are lines that end with a backslash.
    """
    lines: list[str] = []
    block = False
    while True:
        line = _read_line(MORE if lines or block else PROMPT) if terminal else sys.stdin.readline() or None
        if line is None:
            return "\n".join(lines) if lines else None
        line = typed(line.rstrip("\r\n"))
        if not block and not lines and line.startswith(BLOCK):
            block, line = True, line.removeprefix(BLOCK)
            if not line:
                continue
        if block:
            if line.rstrip().endswith(BLOCK):
                return "\n".join([*lines, line.rstrip().removesuffix(BLOCK)]).strip("\n")
            lines.append(line)
        elif line.endswith("\\"):
            lines.append(line[:-1])
        else:
            return "\n".join([*lines, line])


def _read_line(prompt: str) -> str | None:
    if not sys.stdout.isatty():
        # input() would write its prompt into the answers.
        err.print(prompt, end="")
        return sys.stdin.readline() or None
    try:
        return input(prompt)
    except EOFError:
        return None


def _read_utf8() -> None:
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8-sig", errors="replace")
