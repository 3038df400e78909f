"""`tunesmith benchmark MODEL|RUN --tasks NAMES`: public benchmarks by lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table
from tunesmith.cli.counting import Watching
from tunesmith.cli.eval import DtypeOption
from tunesmith.errors import UsageError
from tunesmith.evaluate.benchmark_sections import sections, title
from tunesmith.evaluate.harness_extra import check_harness
from tunesmith.infer.endpoint import is_endpoint

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith benchmark runs/tang-1 --tasks hellaswag,arc_easy --limit 200
  tunesmith benchmark smollm2-135m --tasks hellaswag,arc_easy --limit 200      its base, beside it
  tunesmith benchmark runs/law-1 --tasks ceval-valid_law --shots 5 --chat
  tunesmith benchmark runs/law-1 --tasks my_task --include tasks/ --json
Needs the extra harness. Tasks are lm-evaluation-harness's: docs/eval.md
"""


@app.command(epilog=EXAMPLES)
def benchmark(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="The model.", show_default=False)],
    tasks: Annotated[
        str, typer.Option(metavar="NAMES", help="Tasks, with commas between.", show_default=False)
    ],
    include: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Tasks of your own (YAML), over files of yours.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Solved examples before each question.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first N questions of each task.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Write prompts by the chat template.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answers (.jsonl); the figures go beside them (.json)."),
    ] = None,
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Run public benchmarks on a model or a run, as lm-evaluation-harness defines them."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names or is_endpoint(model):
        what = "An endpoint gives no likelihoods" if names else "No task is named"
        raise UsageError(f"{what}.", fix="Write tunesmith benchmark MODEL|RUN --tasks NAME,NAME.")
    if include is not None and not include.is_dir():
        raise UsageError(
            f"There is no folder {include}.", fix="Give the folder with your task files (.yaml)."
        )
    check_harness()
    with Watching() as watch:
        result = tunesmith.benchmark(
            model, names, include=include, shots=shots, limit=limit, chat=chat, dtype=dtype, output=output,
            watch=watch, note=err.print,
        )  # fmt: skip
    if as_json:
        print_json(result.content)
        return
    out.print(title(result.content), style="bold")
    for section in sections(result.content):
        for sentence in section.sentences:
            out.print(sentence)
        print_table(table(section.columns, section.rows, numbers=section.columns[2:]))
    err.print(f"Answers: {result.content['predictions']}")
    err.print(f"Figures: {result.file}")
