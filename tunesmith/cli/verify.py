"""`tunesmith verify JOB.yaml|RUN [key=value …]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tunesmith
from tunesmith.cli.console import JobOrRun, JobSettings, err, json_option, out, print_json, print_table, table
from tunesmith.train.config import RESUMED_STEPS, VERIFIED_TOKENS, load_job_or_run

if TYPE_CHECKING:
    from tunesmith.train.verify import Line

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith verify job.yaml
  tunesmith verify runs/tang-1 --tokens 300
  tunesmith verify job.yaml adapter.type=full train.learning_rate=2e-5 --json
  tunesmith verify job.yaml --resume          a training that is killed and gone on with
  tunesmith verify job.yaml --resume --steps 20
Exit code 1: a fast path's gradients differ from the naive ones, or the resumed training from the whole one.
"""


@app.command(epilog=EXAMPLES)
def verify(
    job: JobOrRun,
    settings: JobSettings = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of rows to compare on, about.")
    ] = VERIFIED_TOKENS,
    resume: Annotated[
        bool, typer.Option("--resume", help="Instead: kill a real training, go on with it, compare the ends.")
    ] = False,
    steps: Annotated[int, typer.Option(min=2, help="With --resume: how many steps.")] = RESUMED_STEPS,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Compare the gradients of a job's own first rows with the naive computation in fp32."""
    load_job_or_run(job, settings or [])  # a mistake in it is told before torch is imported: seconds
    if resume:
        _verify_resume(job, settings or [], steps, as_json)
        return
    verdict = tunesmith.verify(
        job, *(settings or []), tokens=tokens, note=lambda text: err.print(text, style="dim")
    )
    if as_json:
        print_json(verdict.to_json())
    else:
        rows = [_row(line) for line in verdict.lines]
        columns = ("computation", "all gradients", "worst tensor", "tolerance", "verdict")
        print_table(table(columns, rows, numbers=columns[1:4]), out)
        for text in _notes(verdict.lines):
            out.print(text, soft_wrap=not out.is_terminal)
        err.print(
            f"Relative to the naive computation in fp32, on {verdict.rows} rows, {verdict.tokens:,} tokens."
        )
        told = "Every fast path gives the naive gradients." if verdict.exact else "A fast path is wrong."
        err.print(told, style="bold" if verdict.exact else "bold red")
        if not verdict.exact:
            err.print("What to do: please report this, with the model and what `tunesmith doctor` shows.")
    if not verdict.exact:
        raise typer.Exit(1)


def _verify_resume(job: Path, settings: list[str], steps: int, as_json: bool) -> None:
    verdict = tunesmith.verify_resume(
        job, *settings, steps=steps, note=lambda text: err.print(text, style="dim")
    )
    if as_json:
        print_json(verdict.to_json())
    else:
        rows = [(line.name, "equal" if line.equal else "DIFFERS", line.note) for line in verdict.lines]
        print_table(table(("left after the last step", "", ""), rows), out)
        err.print(
            f"Killed after step {verdict.killed_after}, gone on with from the checkpoint of step "
            f"{verdict.saved}, compared after step {verdict.steps}."
        )
        told = "The resumed training is the uninterrupted one, byte for byte."
        err.print(
            told if verdict.equal else "The resumed training differs.",
            style="bold" if verdict.equal else "bold red",
        )
        if not verdict.equal:
            err.print("What to do: please report this, with the model and what `tunesmith doctor` shows.")
    if not verdict.equal:
        raise typer.Exit(1)


def _row(line: Line) -> tuple[str, ...]:
    if line.overall is None or line.worst is None:
        return (line.name, "", "", "", line.state)
    limit = "" if line.tolerance is None else f"{line.tolerance:.0e}"
    return (line.name, f"{line.overall:.1e}", f"{line.worst:.1e}", limit, line.state)


def _notes(lines: Sequence[Line]) -> Iterator[str]:
    """What the table has no room for: why a path isn't used, and the tensor that is wrong most."""
    for line in lines:
        if line.note:
            yield f"{line.name}: {line.note}"
        if line.state == "wrong" and line.tensor:
            yield f"{line.name}: the worst tensor is {line.tensor}"
