"""The `tunesmith` command: which verbs there are, and how every one of them ends.

A verb's module is imported only when the verb runs. `--help`, `--version` and shell completion know the verbs
from the table below, so that they answer at once and never wait for torch.

    exit code 0     done
              1     failed
              2     wrong usage, or a plan that can't fit
              130   interrupted by Ctrl-C
              143   ended by SIGTERM
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from tunesmith.cli.console import err, fail, utf8_streams
from tunesmith.errors import TunesmithError, lacks_memory

DEBUG = "--debug"
COMPLETION = ("install_completion", "show_completion")  # options that typer adds


@dataclass(frozen=True)
class Verb:
    """A verb: the module whose `app` runs it, its line of help, and the lines of its own verbs.

    `apart` names the modules of those own verbs that need much more (torch) than the rest.
    """

    module: str
    help: str
    verbs: dict[str, str] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)


VERBS: dict[str, Verb] = {
    "data": Verb(
        "tunesmith.cli.data",
        "Check a data file, or see which tokens are trained on.",
        {
            "check": "Recognise the format, count rows, name every bad one.",
            "show": "Print tokens coloured: trained, context, cut.",
        },
        {"show": "tunesmith.cli.data_show"},
    ),
    "make": Verb("tunesmith.cli.make", "Make training rows from your own documents."),
    "train": Verb("tunesmith.cli.train", "Train what a job file describes."),
    "plan": Verb("tunesmith.cli.plan", "Say what a training takes in memory, disk and time."),
    "verify": Verb("tunesmith.cli.verify", "Compare a job's gradients with the naive computation."),
    "chat": Verb("tunesmith.cli.chat", "Talk to a model or a run."),
    "generate": Verb("tunesmith.cli.generate", "Answer every prompt of a file."),
    "sweep": Verb("tunesmith.cli.sweep", "Answer the same prompts under many settings, side by side."),
    "eval": Verb("tunesmith.cli.eval", "Measure a model or a run on rows with answers."),
    "compare": Verb("tunesmith.cli.compare", "Measure two of them on the same rows, with uncertainty."),
    "report": Verb("tunesmith.cli.report", "Write results as an offline page, Markdown or JSON."),
    "judge": Verb("tunesmith.cli.judge", "Let a model judge answers, in both orders or by a rubric."),
    "benchmark": Verb("tunesmith.cli.benchmark", "Run public benchmarks of lm-evaluation-harness."),
    "blind": Verb(
        "tunesmith.cli.blind",
        "Let people judge two models without knowing which is which.",
        {
            "new": "Draw rows, let both models answer, and seal which is which.",
            "serve": "Let raters work on a page of this machine, until Ctrl-C.",
            "page": "Write one offline file to send to raters.",
            "report": "Unseal the test and say what the votes are worth.",
        },
    ),
    "serve": Verb("tunesmith.cli.serve", "Answer programs: an OpenAI-compatible server."),
    "export": Verb("tunesmith.cli.export", "Take a result away as files for other programs."),
    "runs": Verb(
        "tunesmith.cli.runs",
        "Look at the runs of a folder.",
        {
            "list": "Every run with its state and last losses.",
            "show": "One run: settings, loss curve, samples.",
        },
    ),
    "doctor": Verb("tunesmith.cli.doctor", "Say what this machine can do, and what is missing."),
}

EXAMPLES = """\b
Examples:
  tunesmith data check my.jsonl                   what is in my file?
  tunesmith train my.yaml                         train it
  tunesmith train my.yaml train.epochs=3          the same with one setting changed
  tunesmith chat runs/my-1                        talk to the result
  tunesmith compare runs/my-1 --data test.jsonl   what the training changed
  tunesmith export runs/my-1 --to gguf            take it away, for llama.cpp
  tunesmith VERB --help                           examples of each verb
"""


def main() -> NoReturn:
    """Run the command line and end the process; no error reaches a person as a traceback."""
    words = sys.argv[1:]
    options = words[: words.index("--")] if "--" in words else words
    debug = DEBUG in options
    if debug:
        words = [word for word in options if word != DEBUG] + words[len(options) :]
    utf8_streams()
    # pydantic would read the metadata of every installed package for plugins: 20 ms, and other people's code.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        try:
            typer.main.get_command(app).main(args=words, prog_name="tunesmith")
        finally:
            sys.stdout.flush()  # here, where a reader that has gone can still be met quietly
    except TunesmithError as error:
        _show_traceback(debug)
        fail(error)
    except KeyboardInterrupt as interrupted:
        err.print(str(interrupted) or "Interrupted.")
        _let_go(130)
        raise SystemExit(130) from None
    except SystemExit as ended:
        # typer turns Ctrl-C into an exit of its own, without a word.
        if isinstance(cause := getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            err.print(str(cause) or "Interrupted.")
            _let_go(130)
        raise
    except BrokenPipeError:
        _leave_pipe()
    except Exception as error:
        _show_traceback(debug)
        fail(_unexpected(error))
    raise SystemExit(0)


class _Verbs(TyperGroup):
    """The group of all verbs: told apart by the table, imported when one of them is about to run."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        return list(VERBS)

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)
        for param in params:
            # All are flags. One that is None would be converted, for which typer imports pydantic: 60 ms.
            param.default = False if param.default is None else param.default
        return params

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        # Completion resolves a line without running it; the table is all it needs.
        if command is not None and name is not None and not ctx.resilient_parsing:
            command = _load(name, rest)
        return name, command, rest


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a language model on your own documents and measure what changed.",
    epilog=EXAMPLES,
)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata  # 25 ms that only this option needs

        typer.echo(f"tunesmith {importlib.metadata.version('tunesmith')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_version, is_eager=True
    ),
    debug: bool = typer.Option(False, DEBUG, help="Show the traceback of an error; may stand anywhere."),
) -> None:
    del version, debug  # --debug is taken out of the words by main(), so that it may follow the verb


def _load(name: str, rest: Sequence[str] = ()) -> Any:
    """The verb's real command, as its module defines it; `rest` tells which of its own verbs is meant."""
    verb = VERBS[name]
    verb_app: typer.Typer = importlib.import_module(verb.module).app
    for part, module in verb.apart.items():
        if part in rest[:1]:
            verb_app.add_typer(importlib.import_module(module).app)
        else:
            verb_app.command(part, help=verb.verbs[part])(_table_entry)
    verb_app.rich_markup_mode = None  # one look for all verbs, and job words in [brackets] stay as they are
    command = typer.main.get_command(verb_app)
    command.params = [p for p in command.params if p.name not in COMPLETION]
    return command


def _table_entry() -> None:
    raise AssertionError("a verb runs from its own module")


for _name, _verb in VERBS.items():
    if _verb.verbs:
        _group = typer.Typer(rich_markup_mode=None)
        for _sub, _help in _verb.verbs.items():
            _group.command(_sub, help=_help)(_table_entry)
        app.add_typer(_group, name=_name, help=_verb.help)
    else:
        app.command(_name, help=_verb.help)(_table_entry)


def _unexpected(error: Exception) -> TunesmithError:
    if lacks_memory(error):
        return TunesmithError(
            "The memory isn't enough.",
            details=[str(error)] if str(error) else [],
            fix="Use a smaller model, a smaller data.max_length or a smaller train.microbatch_tokens.",
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return TunesmithError(
            f"{where}{error.strerror}.", fix=f"Check the path and the disk; {DEBUG} shows where it happened."
        )
    return TunesmithError(
        f"Something went wrong inside tunesmith: {type(error).__name__}: {error}",
        fix=f"This is a mistake in tunesmith, not yours. Run it again with {DEBUG} for the traceback "
        "and report it with the command.",
    )


def _show_traceback(debug: bool) -> None:
    if debug:
        err.print(traceback.format_exc(), end="")


def _terminated(*_: object) -> NoReturn:
    # An exception, not os._exit: temporary folders vanish and locks are given back on the way out.
    raise SystemExit(143)


def _let_go(code: int) -> None:
    """End now where a checkpoint or an answer is still being written: a second Ctrl-C waits for nothing."""
    if any(thread.name in ("tunesmith-checkpoint", "tunesmith-serve") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave_pipe() -> NoReturn:
    """The reader (such as `head`) has gone: say nothing, not even while Python flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(1)


if __name__ == "__main__":
    main()
