"""`tunesmith eval MODEL|RUN --data FILE [key=value …]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table, told
from tunesmith.cli.counting import Watching
from tunesmith.cli.findings import FindingsOption, tell_findings
from tunesmith.errors import UsageError
from tunesmith.evaluate.metrics import NAMES, Metric
from tunesmith.evaluate.predicted import read_predictions
from tunesmith.evaluate.questions import Questions, choose_metrics, read_questions
from tunesmith.evaluate.results import evaluation_rows, group_rows, title
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import check_endpoints
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
  tunesmith eval runs/law-1 --data test.jsonl --metrics f1_char,rouge_l,bleu --by category
  tunesmith eval http://127.0.0.1:8000/v1#my-model --data test.jsonl
  tunesmith eval runs/tang-1 --data general --by kind      60 built-in questions: what does it still know?
  tunesmith eval --predictions answers.jsonl --metric "regex:答案是(.+)" --metric mine.py:polite
Answers are greedy unless sampling settings are given: docs/eval.md
"""

OptionalDataFile = Annotated[
    Path | None,
    typer.Option("--data", metavar="FILE", help="Rows with answers, in any format; or `general`."),
]
PredictionsFile = Annotated[
    Path | None,
    typer.Option(
        "--predictions", metavar="FILE", help="Score these answers (JSONL) instead of asking a model."
    ),
]
DataFile = Annotated[
    Path, typer.Option("--data", metavar="FILE", help="Rows with answers, in any format.", show_default=False)
]
References = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The answers, if they stand in a file of their own.")
]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help=f"Metrics, with commas between: {', '.join(NAMES)}."),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME|FILE.py:FUNCTION", help="One more metric, or one of your own."),
]
By = Annotated[
    list[str] | None, typer.Option("--by", metavar="COLUMN", help="Figures by the values of a column too.")
]
Document = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The column that says which document a row is from."),
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
        list[str] | None,
        typer.Argument(
            metavar="MODEL|RUN|URL#MODEL [key=value]...",
            help="The model; sampling settings.",
            show_default=False,
        ),
    ] = None,
    data: OptionalDataFile = None,
    predictions: PredictionsFile = None,
    references: References = None,
    metrics: Metrics = None,
    metric: MetricOption = None,
    by: By = None,
    document: Document = None,
    limit: Limit = None,
    findings: FindingsOption = False,
    output: Output = None,
    dtype: DtypeOption = "auto",
    template: Template = None,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Measure a model, a run or a file of predictions: loss, perplexity, and metrics by name."""
    names, sampling = split(words or [])
    chosen = named(metrics, metric)
    with Watching() as watch:
        if predictions is not None:
            _check_alone(names, sampling, data, references, limit)
            rows = read_questions(str(data), str(references) if references else None, limit) if data else None
            questions, _ = read_predictions(str(predictions), rows, by=by or (), document=document)
            result = tunesmith.evaluate(
                data=rows, predictions=str(predictions), metrics=say(chosen, questions), by=by or (),
                document=document, output=output, watch=watch, note=err.print,
            )  # fmt: skip
        else:
            _check_one(names, data)
            questions = asked(data, references, limit, by, document)
            result = tunesmith.evaluate(
                names[0], questions, metrics=say(chosen, questions), output=output,
                dtype=dtype, template=template, watch=watch, note=err.print, **sampling.given(),
            )  # fmt: skip
    if as_json:
        print_json(result.content)
        return
    out.print(title(result.content), style="bold")
    grid = table(("", ""), evaluation_rows(result.content))
    grid.show_header = False
    print_table(grid)
    tell_groups(result.content)
    tell_findings(result.content, whole=findings)
    for note in result.content["notes"]:
        err.print(note)
    tell_files(result)


def _check_alone(
    names: list[str], sampling: Sampling, data: Path | None, references: Path | None, limit: int | None
) -> None:
    if names or sampling.given():
        raise UsageError(
            f"--predictions takes neither a model nor sampling settings (given: "
            f"{', '.join([*names, *sampling.given()])}).",
            fix="Leave them out: the answers are there already.",
        )
    if limit is not None and data is None:
        raise UsageError(
            "--limit takes the first rows of --data; of --predictions alone every answer is scored.",
            fix="Leave it out, or give the rows too.",
        )
    if references is not None and data is None:
        raise UsageError(
            "--references goes with --data, whose rows it has the answers of.",
            fix="Give both; or write the references into the lines of the predictions.",
        )


def _check_one(names: list[str], data: Path | None) -> None:
    if len(names) != 1:
        raise UsageError(
            f"`tunesmith eval` takes one model or run (given: {', '.join(names) or 'none'}).",
            fix="Write tunesmith eval MODEL --data FILE; for two: tunesmith compare A B --data FILE.",
        )
    if data is None:
        raise UsageError("`tunesmith eval` needs rows with answers.", fix="Give them: --data FILE.")


def split(words: list[str]) -> tuple[list[str], Sampling]:
    """Names of models, and the key=value words as sampling settings; a path that exists is a name."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in settings]
    sampling = build(Sampling, parse_overrides(settings))
    check_endpoints(names, sampling)
    for line in sampling.useless():
        told(line)
    return names, sampling


def asked(
    data: Path | None,
    references: Path | None,
    limit: int | None,
    by: list[str] | None,
    document: str | None,
) -> Questions:
    """The rows of a file."""
    truth = str(references) if references else None
    return read_questions(str(data), truth, limit, by=by or (), document=document)


def named(metrics: str | None, more: list[str] | None) -> list[str] | None:
    """The names of --metrics and --metric; None where neither was given."""
    if metrics is None and more is None:
        return None
    listed = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    return [*listed, *(more or [])]


def say(names: list[str] | None, questions: Questions) -> list[Metric]:
    """The metrics by name; says which ones where the person didn't choose, and by which rules."""
    chosen = choose_metrics(names, questions)
    if names is None:
        shown = [metric.name for metric in chosen]
        why = " (every reference has the verse's form)" if "verse_form" in shown else ""
        err.print(f"{len(questions.conversations)} rows; metrics: {', '.join(shown)}{why}.")
    for metric in chosen:
        if metric.signature:
            err.print(f"{metric.name}: {metric.signature}")
    return chosen


def tell_groups(content: Mapping[str, Any]) -> None:
    """The table of figures by group, where some were asked."""
    columns, rows = group_rows(content)
    if rows:
        out.print()
        print_table(table(columns, rows, numbers=("n",)))


def tell_files(result: Result) -> None:
    """Where everything was written."""
    err.print(f"Predictions: {result.content['predictions']}")
    err.print(f"Figures:     {result.file}")
    if result.report is not None:
        err.print(f"Report:      {result.report}")
