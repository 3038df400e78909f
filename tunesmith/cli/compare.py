"""`tunesmith compare A B … --data FILE [key=value …]`, or `compare RUN` for a run against its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table
from rich.text import Text

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table
from tunesmith.cli.counting import Watching
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
    asked,
    named,
    say,
    split,
    tell_files,
    tell_groups,
)
from tunesmith.cli.findings import FindingsOption, tell_findings
from tunesmith.errors import UsageError
from tunesmith.evaluate.results import (
    DIFFERENCES,
    columns,
    comparison_rows,
    difference_rows,
    letters,
    pairs,
    side_rows,
    sides_of,
    title,
)

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison

NARROWEST = 22  # cells of a column of texts; below that they stand one under the other

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith compare runs/tang-1 --data valid.json              its base against it
  tunesmith compare runs/tang-1 runs/tang-2 --data valid.json
  tunesmith compare https://api.deepseek.com/v1#deepseek-chat@DEEPSEEK_API_KEY runs/tang-1 --data valid.json
  tunesmith compare smollm2-135m runs/tang-1 runs/tang-2 --data valid.json   both against the first one
  tunesmith compare generated_predictions.jsonl runs/tang-1 --data valid.json   another tool's answers
  tunesmith compare runs/tang-1 runs/tang-2 --with-base --data valid.json    the same, by the runs' own base
  tunesmith compare runs/tang-1 --data test.json --references truth.txt --show 5
  tunesmith compare runs/tang-1 --data valid.json --findings   forgotten, copied, invented: row by row
Answers are greedy unless sampling settings are given: docs/eval.md
"""


@app.command(epilog=EXAMPLES)
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C]...|RUN [key=value]...",
            help="Models, runs or files of answers (.jsonl), the first one the reference, or one run; "
            "sampling settings.",
            show_default=False,
        ),
    ],
    data: DataFile,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="The base of the runs is the reference, before all named.")
    ] = False,
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
    """Measure models on the same rows, with uncertainty; a run alone is measured against its base."""
    names, sampling = split(words)
    if not names:
        raise UsageError(
            "`tunesmith compare` takes one run, or two models or more (given: none).",
            fix="Write tunesmith compare A B --data FILE.",
        )
    questions = asked(data, references, limit, by, document)
    chosen = say(named(metrics, metric), questions)
    with Watching() as watch:
        result = tunesmith.compare(
            *names, data=questions, with_base=with_base, forgetting=forgetting, metrics=chosen, output=output,
            dtype=dtype, template=template, watch=watch, note=err.print, **sampling.given(),
        )  # fmt: skip
    if as_json:
        print_json(result.content)
        return
    if show:
        show_rows(cast("Comparison", result.measured), show)
    tell(result.content)
    for pair in pairs(result.content):
        tell_findings(pair, whole=findings)
    for note in result.content["notes"]:
        err.print(note)
    tell_files(result)


def tell(content: Mapping[str, Any]) -> None:
    """Who was measured, everybody's figures, and the differences from the first one: of two in one table."""
    if len(sides_of(content)) == 2:
        built = table(columns(content), comparison_rows(content), numbers=("A", "B"))
        if _fits(built):
            out.print(title(content), style="bold")
            print_table(built)
            tell_groups(content)
            return
    out.print(f"{Path(content['data']).name}, n = {content['n']}", style="bold")
    keys = letters(content)
    for key, side in zip(keys, sides_of(content), strict=True):
        out.print(f"  {key} = {side['model']}")
    out.print()
    print_table(_of_sides(content, keys))
    out.print()
    built = table(DIFFERENCES, difference_rows(content))
    built.columns[2].no_wrap = True  # words of the verdict may be folded, an interval not
    print_table(built)
    for one in pairs(content):
        tell_groups(one)


def _of_sides(content: Mapping[str, Any], keys: Sequence[str]) -> Table:
    """Everybody's figures: a column each, intervals beside or below; a row each where that is too wide."""
    for stacked in (False, True):
        built = table(("", *keys), side_rows(content, stacked=stacked), numbers=keys)
        if _fits(built):
            return built
    rows = [
        ("" if at else name, key, cell)
        for name, *cells in side_rows(content)
        for at, (key, cell) in enumerate(zip(keys, cells, strict=True))
    ]
    return table(("", " ", "figure"), rows)


def _fits(built: Table) -> bool:
    """Whether the terminal is wide enough; a pipe always is."""
    wanted = out.measure(built, options=out.options.update(max_width=100_000)).maximum
    return not out.is_terminal or wanted <= out.width


def show_rows(comparison: Comparison, count: int) -> None:
    """The first rows: the end of the prompt, all answers, the reference; side by side where there is room."""
    names = [f"{key}: {side.model}" for key, side in zip(ascii_uppercase, comparison.sides, strict=False)]
    headings = ("prompt", *names, "reference")
    rows = [
        (
            row[0].prompt.rpartition("\n")[2],
            row[0].shown_answer,
            *(Text(other.shown_answer, "bold") for other in row[1:]),
            row[0].shown_references[0],
        )
        for row in comparison.rows()[:count]
    ]
    if len(names) > 2 and out.is_terminal and out.width // len(headings) < NARROWEST:
        for row in rows:
            grid = table(("", ""), zip(headings, row, strict=True))
            grid.show_header = False
            print_table(grid)
            out.print()
        return
    print_table(table(headings, rows))
    out.print()
