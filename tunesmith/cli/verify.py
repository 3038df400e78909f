"""`tunesmith verify JOB.yaml|RUN [key=value …]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

import tunesmith
from tunesmith.cli.console import JobOrRun, JobSettings, err, json_option, out, print_json, print_table, table
from tunesmith.train.config import VERIFIED_TOKENS, load_job_or_run

if TYPE_CHECKING:
    from tunesmith.train.verify import Line

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith verify job.yaml
  tunesmith verify runs/tang-1 --tokens 300
  tunesmith verify job.yaml adapter.type=full train.learning_rate=2e-5 --json
Exit code 1: a fast path's gradients differ from the naive ones.
"""


@app.command(epilog=EXAMPLES)
def verify(
    job: JobOrRun,
    settings: JobSettings = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of rows to compare on, about.")
    ] = VERIFIED_TOKENS,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Compare the gradients of a job's own first rows with the naive computation in fp32."""
    load_job_or_run(job, settings or [])  # a mistake in it is told before torch is imported: seconds
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
