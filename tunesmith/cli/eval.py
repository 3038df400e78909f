"""`tunesmith eval MODEL|RUN --data FILE [key=value …]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table
from tunesmith.errors import UsageError
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.questions import Questions, choose_metrics, read_questions
from tunesmith.evaluate.results import evaluation_rows, title
from tunesmith.infer.config import Sampling
from tunesmith.model.config import Dtype
from tunesmith.settings import build, parse_overrides

if TYPE_CHECKING:
    from tunesmith.evaluate.measure import Result

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith eval runs/tang-1 --data valid.json
  tunesmith eval smollm2-135m --data test.json --references truth.txt
  tunesmith eval runs/tang-1 --data valid.json temperature=0.7 seed=1 --json
Answers are greedy unless sampling settings are given: docs/eval.md
"""

DataFile = Annotated[
    Path, typer.Option("--data", metavar="FILE", help="Rows with answers, in any format.", show_default=False)
]
References = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The answers, if they stand in a file of their own.")
]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help=f"Metrics, with commas between: {', '.join(METRICS)}."),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="The first N rows only.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Predictions (.jsonl); the figures go beside them (.json)."),
]
DtypeOption = Annotated[Dtype, typer.Option(help="Number format of the weights.")]
Template = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="Chat template, for models without one.")
]


@app.command(epilog=EXAMPLES)
def eval_(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|RUN [key=value]...", help="The model; sampling settings.", show_default=False
        ),
    ],
    data: DataFile,
    references: References = None,
    metrics: Metrics = None,
    limit: Limit = None,
    output: Output = None,
    dtype: DtypeOption = "auto",
    template: Template = None,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Measure a model or a run on rows with answers: loss, perplexity, exact match, F1, form."""
    names, sampling = split(words)
    if len(names) != 1:
        raise UsageError(
            f"`tunesmith eval` takes one model or run (given: {', '.join(names) or 'none'}).",
            fix="To measure two on the same rows: tunesmith compare A B --data FILE.",
        )
    questions, chosen = asked(data, references, metrics, limit)
    with Watching() as watch:
        result = tunesmith.evaluate(
            names[0], questions, metrics=chosen, output=output,
            dtype=dtype, template=template, watch=watch, note=err.print, **sampling.given(),
        )  # fmt: skip
    if as_json:
        print_json(result.content)
        return
    out.print(title(result.content), style="bold")
    grid = table(("", ""), evaluation_rows(result.content))
    grid.show_header = False
    print_table(grid)
    for note in result.content["notes"]:
        err.print(note)
    tell_files(result)


class Watching:
    """A progress bar on stderr while models answer; without a terminal, a line for each part."""

    def __init__(self) -> None:
        # The name of a model is text, whatever brackets it has.
        name = TextColumn("{task.description}", style="progress.description", markup=False)
        columns = (name, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._what = ""
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Watching:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, rows: int) -> None:
        if what != self._what and not err.is_terminal:
            err.print(f"{what} ({rows} rows)")
        self._what = what
        self._bar.update(self._task, description=what, completed=done, total=rows)


def split(words: list[str]) -> tuple[list[str], Sampling]:
    """Names of models, and the key=value words as sampling settings; a path that exists is a name."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in settings]
    return names, build(Sampling, parse_overrides(settings))


def asked(
    data: Path, references: Path | None, metrics: str | None, limit: int | None
) -> tuple[Questions, list[str]]:
    """The rows and the metrics by name; says which ones where the person didn't choose."""
    questions = read_questions(str(data), str(references) if references else None, limit)
    names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics is not None else None
    chosen = [metric.name for metric in choose_metrics(names, questions)]
    if names is None:
        why = " (every reference has the verse's form)" if "verse_form" in chosen else ""
        err.print(f"{len(questions.conversations)} rows; metrics: {', '.join(chosen)}{why}.")
    return questions, chosen


def tell_files(result: Result) -> None:
    """Where everything was written."""
    err.print(f"Predictions: {result.content['predictions']}")
    err.print(f"Figures:     {result.file}")
    if result.report is not None:
        err.print(f"Report:      {result.report}")
