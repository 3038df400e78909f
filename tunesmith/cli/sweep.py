"""`tunesmith sweep MODEL|RUN`: the same prompts under many settings, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table, told, typed
from tunesmith.data.prompts import read_prompts
from tunesmith.disk import disk_errors
from tunesmith.errors import UsageError
from tunesmith.evaluate.sweep import FIGURES, Sweep, asked, combinations, number
from tunesmith.model.config import Dtype

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith sweep runs/tang-1 --prompt "白日依山盡，黃河入海流。" temperature=0.1,0.7,1.2 top_p=0.3,0.9
  tunesmith sweep smollm2-135m --prompt "Name a fruit." temperature=0.5,1.5 num_return_sequences=5
  tunesmith sweep runs/tang-1 --input test.json --limit 3 num_beams=1,4 max_new_tokens=40 --html sweep.html
  tunesmith generate --settings                  every setting
Several values of a setting are written with commas; every combination of them answers. Drawn answers have
seed 0 and come three to a prompt unless you set seed and num_return_sequences.
"""

NARROWEST = 26  # characters of a column


@app.command(epilog=EXAMPLES)
def sweep(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|RUN", help="Alias, hub id, folder, GGUF file, or the folder of a run."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value,value", help="Settings, e.g. temperature=0.1,0.7 top_p=0.3,0.9."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given more than once.")] = None,
    input: Annotated[
        str | None, typer.Option(help="Prompts in any row format, or .txt with one a line.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts.")] = None,
    system: Annotated[str, typer.Option(help="With --prompt: the system prompt.")] = "",
    html: Annotated[Path | None, typer.Option(help="Write them as one HTML file, too.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an HTML file that is there.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences computed at once.")] = 16,
    template: Annotated[
        str | None, typer.Option(help="chatml, alpaca, plain or FILE.jinja, instead of the model's own.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = "auto",
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Answer the same prompts under every combination of settings, with figures of how varied they are."""
    _check_words(prompt, input, system, html, force=force)
    chosen = combinations(list(map(typed, settings or [])))
    for line in dict.fromkeys(line for one in chosen for line in one.sampling.useless()):
        # A seed that one combination draws by has its use beside others that don't draw.
        if all(line in one.sampling.useless() for one in chosen):
            told(line)
    prompts = read_prompts(input) if input else asked(list(map(typed, prompt or [])), typed(system))
    answerer = tunesmith.load(model, dtype=dtype, template=template, note=told)
    answerer.batch_size = batch_size
    found = tunesmith.sweep(
        answerer, prompts[:limit], chosen,
        watch=lambda n, one: err.print(f"{n + 1} of {len(chosen)}: {one.title}", style="dim"),
    )  # fmt: skip
    if html is not None:
        with disk_errors(html):
            html.write_text(found.html(), encoding="utf-8")
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)
    if html is not None:
        err.print(f"Written: {html}")


def _check_words(
    prompt: list[str] | None, input: str | None, system: str, html: Path | None, *, force: bool
) -> None:
    problems = []
    if bool(prompt) == bool(input):
        problems.append("give --prompt TEXT (once or more), or --input FILE")
    if any(not text.strip() for text in prompt or []):
        problems.append("--prompt is empty")
    if system and input:
        problems.append("--system goes with --prompt; the rows of a file have their own")
    if html is not None and html.is_dir():
        problems.append(f"--html {html} is a folder: give a file in it")
    elif html is not None and not html.parent.is_dir():
        problems.append(f"--html: there is no folder {html.parent}")
    elif html is not None and html.exists() and not force:
        problems.append(f"{html} is there already: give another name, or add --force to replace it")
    if problems:
        raise UsageError(
            "The command can't be carried out.", details=problems, fix="tunesmith sweep --help has examples."
        )


def _show(found: Sweep) -> None:
    at_once = max(1, out.width // NARROWEST)
    for row, prompt in enumerate(found.prompts):
        out.print(f"{prompt.question}\n", style="bold")
        for start in range(0, len(found.columns), at_once):
            columns = found.columns[start : start + at_once]
            answers = [
                [
                    column.answers[row][n].text.strip() + "\n" if n < len(column.answers[row]) else ""
                    for column in columns
                ]
                for n in range(max(len(column.answers[row]) for column in columns))
            ]
            print_table(table([column.combination.title for column in columns], answers), out)
    rows = [
        [column.combination.title, *(number(column.figures[name]) for name in FIGURES)]
        for column in found.columns
    ]
    print_table(table(["settings", *FIGURES], rows, numbers=list(FIGURES)), out)
    err.print("; ".join(f"{name}: {meaning}" for name, meaning in FIGURES.items()), style="dim")
