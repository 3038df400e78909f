"""`tunesmith compare A B --data FILE [key=value …]`, or `compare RUN` for a run against its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.text import Text

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table
from tunesmith.cli.eval import (
    By,
    DataFile,
    Document,
    DtypeOption,
    Limit,
    MetricOption,
    Metrics,
    Output,
    References,
    Template,
    Watching,
    asked,
    named,
    say,
    split,
    tell_files,
    tell_groups,
)
from tunesmith.cli.findings import FindingsOption, tell_findings
from tunesmith.errors import UsageError
from tunesmith.evaluate.results import COLUMNS, comparison_rows, title

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith compare runs/tang-1 --data valid.json              its base against it
  tunesmith compare runs/tang-1 runs/tang-2 --data valid.json
  tunesmith compare runs/tang-1 --data test.json --references truth.txt --show 5
  tunesmith compare runs/tang-1 --data valid.json --findings   forgotten, copied, invented: row by row
Answers are greedy unless sampling settings are given: docs/eval.md
"""


@app.command(epilog=EXAMPLES)
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="A B|RUN [key=value]...",
            help="Two models or runs, or one run; sampling settings.",
            show_default=False,
        ),
    ],
    data: DataFile,
    references: References = None,
    metrics: Metrics = None,
    metric: MetricOption = None,
    by: By = None,
    document: Document = None,
    limit: Limit = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Show N rows side by side.")] = 0,
    forgetting: Annotated[
        bool | None,
        typer.Option(
            "--forgetting/--no-forgetting",
            help="Ask 60 general questions too; by default where the last one is a run.",
            show_default=False,
        ),
    ] = None,
    findings: FindingsOption = False,
    output: Output = None,
    dtype: DtypeOption = "auto",
    template: Template = None,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Measure two models on the same rows, with uncertainty; a run alone is measured against its base."""
    names, sampling = split(words)
    if not 1 <= len(names) <= 2:
        raise UsageError(
            f"`tunesmith compare` takes one run or two models (given: {', '.join(names) or 'none'}).",
            fix="Write tunesmith compare A B --data FILE.",
        )
    questions = asked(data, references, limit, by, document)
    chosen = say(named(metrics, metric), questions)
    b = names[1] if len(names) == 2 else None
    with Watching() as watch:
        result = tunesmith.compare(
            names[0], b, data=questions, metrics=chosen, output=output,
            dtype=dtype, template=template, forgetting=forgetting, watch=watch, note=err.print,
            **sampling.given(),
        )  # fmt: skip
    if as_json:
        print_json(result.content)
        return
    if show:
        show_rows(cast("Comparison", result.measured), show)
    out.print(title(result.content), style="bold")
    print_table(table(COLUMNS, comparison_rows(result.content), numbers=("A", "B")))
    tell_groups(result)
    tell_findings(result.content, whole=findings)
    for note in result.content["notes"]:
        err.print(note)
    tell_files(result)


def show_rows(comparison: Comparison, count: int) -> None:
    """The first rows side by side: the end of the prompt, both answers, the reference."""
    rows = [
        (a.prompt.rpartition("\n")[2], a.completion.text, Text(b.completion.text, "bold"), a.references[0])
        for a, b in comparison.rows()[:count]
    ]
    print_table(table(("prompt", f"A: {comparison.a.model}", f"B: {comparison.b.model}", "reference"), rows))
    out.print()
