"""`tunesmith export RUN --to adapter|merged`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table, told
from tunesmith.cli.counting import Watching
from tunesmith.errors import ExportError
from tunesmith.export.config import SHARD, TARGETS, TYPES, Dtype, Request, parse_size
from tunesmith.export.wanted import check_asked
from tunesmith.words import counted, size

if TYPE_CHECKING:
    from tunesmith.export.gate import Verification

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith export runs/tang-1 --to merged
  tunesmith export runs/tang-1 --to adapter --output tang-adapter
  tunesmith export runs/tang-1 --to gguf --type q8_0
  tunesmith export runs/tang-1 --to ollama --output tang-ollama
  tunesmith export runs/tang-1 --to merged --checkpoint 100 --output tang-100
  tunesmith export path/to/peft-adapter --to merged --output merged
Exit code 1: what was written isn't the model that was tuned; nothing of it is kept.
"""


@app.command(epilog=EXAMPLES)
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A run, or the folder of a PEFT adapter.", show_default=False
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="|".join(TARGETS), help="In which form.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where it goes; default: RUN/export/<form>.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="best|last|STEP", help="A checkpoint; default: the run's final weights."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="bf16|f16|f32", help="Number format of merged weights; auto: the base's.")
    ] = "auto",
    gguf_type: Annotated[
        str, typer.Option("--type", metavar="|".join(TYPES), help="Number format of a GGUF file.")
    ] = Request.type,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The largest file of weights.")] = SHARD,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Keep it although it is over the budget, and record that.")
    ] = False,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Take a result away as files for other programs, compared with the tuned model."""
    check_asked(
        Request(
            model,
            to,
            output,
            checkpoint,
            cast(Dtype, dtype),
            parse_size(shard_size),
            force,
            allow_drift,
            gguf_type,
        )
    )  # a mistake is told before torch is imported: seconds
    seen: list[Verification] = []

    def found(verification: Verification) -> None:
        seen.append(verification)
        _tell(verification)

    try:
        with Watching("") as watch:
            done = tunesmith.export(
                model, to, output=output, checkpoint=checkpoint, dtype=dtype, type=gguf_type,
                shard_size=shard_size, force=force, allow_drift=allow_drift, note=told, watch=watch,
                found=found,
            )  # fmt: skip
    except ExportError:
        if as_json:  # what was found is the result, although nothing is kept
            print_json({"path": None, "to": to, "verification": seen[-1].to_json(texts=True)})
        raise
    if as_json:
        print_json(done.to_json())
        return
    verdict = "All checks passed."
    if done.verification.failed:
        err.print("Kept although it is over the budget (--allow-drift); its card says so.", style="bold red")
        verdict = "All other checks passed."
    err.print(f"{verdict} {size(done.bytes)}; what was checked: {done.path / 'verification.json'}")
    for number, line in enumerate(_next(done.to, done.path)):
        err.print(("        " if number else "Next:   ") + line)
    out.print(str(done.path))


def _next(to: str, path: Path) -> list[str]:
    """What the files are good for, as commands to copy."""
    files = [shlex.quote(str(file)) for file in sorted(path.glob("*.gguf"))]
    if to == "ollama":
        return [f"cd {shlex.quote(str(path))} && ollama create NAME -f Modelfile"]
    if to == "gguf" and files:
        return [f"tunesmith chat {files[0]}", f"llama-server -m {files[0]} --jinja"]
    return [f"tunesmith chat {shlex.quote(str(path))}"]


def _tell(found: Verification) -> None:
    """What the gate found, before it is judged: also where it refuses."""
    rows = [(c.name, c.figure, c.limit, c.state) for c in found.checks]
    print_table(table(("check", "found", "limit", ""), rows), err)
    for note in found.notes:
        told(note)
    different = [answer for answer in found.answers if not answer.equal]
    for answer in found.answers:
        err.print()
        err.print(f"prompt    {_line(answer.prompt)}", style="dim")
        err.print(f"tuned     {_line(answer.tuned)}")
        err.print(f"exported  {_line(answer.exported)}" + ("" if answer.equal else "   (differs)"))
    if different:
        err.print(
            f"{counted(len(different), 'answer')} went another way: greedy answers do where two words are "
            "about as likely. The drift above is the figure to go by."
        )
    err.print()


def _line(text: str) -> str:
    """A text on one line, its end kept: that of a prompt is the question."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 160 else f"… {flat[-158:]}"
