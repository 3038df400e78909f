"""`tunesmith data show FILE --model M`: which tokens a model is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

import typer

from tunesmith.cli.console import err, out
from tunesmith.data import show as data_show
from tunesmith.data.check import survey
from tunesmith.data.config import DataSettings
from tunesmith.data.read import joined
from tunesmith.data.template import Renderer
from tunesmith.errors import DataError
from tunesmith.model.load import load_tokenizer
from tunesmith.model.source import resolve
from tunesmith.records import Record
from tunesmith.settings import build, parse_overrides
from tunesmith.words import counted

app = typer.Typer(add_completion=False)

MOST = 400  # tokens of a row: about a screen
LOOKED_AT = 5000  # rows that are encoded to say how many can't be trained on whole: a few seconds
NAMED = 5

EXAMPLES = """\b
Examples:
  tunesmith data show train.jsonl                                 with the embedded default model's template
  tunesmith data show train.jsonl --model models/Qwen3-0.6B -n 5
  tunesmith data show train.jsonl --from 100 max_length=512 too_long=truncate_left
"""


@app.command(epilog=EXAMPLES)
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A data file or folder.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value]...", help="Settings of data: max_length, too_long, train_on, template."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model whose tokens and template count.")
    ] = "smollm2-135m",
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows to show.")] = 3,
    start: Annotated[int, typer.Option("--from", min=1, help="The first row to show.")] = 1,
    everything: Annotated[
        bool, typer.Option("--all", help=f"All tokens of a row, also of one with more than {MOST}.")
    ] = False,
    info: Annotated[
        str | None,
        typer.Option("--info", help="A dataset_info.json; FILE is then a name in it.", show_default=False),
    ] = None,
) -> None:
    """Print tokens coloured: trained on (green), context (dim), cut (red)."""
    words = [word.removeprefix("data.") for word in settings or []]
    typed = parse_overrides(words)
    data = build(DataSettings, {"train": file, **typed}, typed=typed)
    dataset, problems = survey([file], info)
    if problems or not dataset.records:
        raise (
            joined(problems)
            if problems
            else DataError(
                f"No row of {file} can be used.",
                details=[str(row) for row in dataset.bad_rows],
                fix="`tunesmith data check` lists what is wrong.",
            )
        )
    chosen = list(itertools.islice(dataset.records, start - 1, start - 1 + rows))
    if not chosen:
        raise DataError(
            f"{file} has no row {start}: it has {len(dataset.records)} good rows.",
            fix="Give a smaller --from.",
        )
    renderer = Renderer(load_tokenizer(resolve(model)), data.template)
    for text in data_show.show(
        data_show.trace(chosen, renderer, data),
        renderer.tokenizer,
        plain=not out.is_terminal,
        most=None if everything else MOST,
    ):
        out.print(text)
    err.print(f"{len(chosen)} of {len(dataset.records)} rows, template: {renderer.name}")
    _tell_the_rest(dataset.records, renderer, data)
    if dataset.bad_rows:
        err.print(f"{len(dataset.bad_rows)} rows can't be used: tunesmith data check {file}")


def _tell_the_rest(records: Sequence[Record], renderer: Renderer, data: DataSettings) -> None:
    """Rows that wouldn't be trained on whole, wherever they stand: whoever looks at three would miss them."""
    found = [
        f"{row.origin}: " + (row.remark or f"{row.kinds.count('cut')} of {len(row.ids)} tokens cut")
        for row in data_show.trace(records[:LOOKED_AT], renderer, data)
        if not row.ids or "cut" in row.kinds
    ]
    looked = f" of the first {LOOKED_AT:,}" if len(records) > LOOKED_AT else ""
    if found:
        err.print(f"{counted(len(found), 'row')}{looked} can't be trained on whole:", style="bold")
    for line in found[:NAMED]:
        err.print(f"  {line}")
    if len(found) > NAMED:
        err.print(f"  … and {len(found) - NAMED:,} more")
