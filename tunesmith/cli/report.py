"""`tunesmith report RUN|RESULT.json`: the page, Markdown or JSON; from files alone, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tunesmith
from tunesmith.cli.console import err, out, write
from tunesmith.evaluate.formats import Format, Language, form_of

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith report runs/tang-1                       runs/tang-1/report.html anew
  tunesmith report eval/a-b.test.json                eval/a-b.test.report.html
  tunesmith report runs/tang-1 --output tang.md --language zh
  tunesmith report runs/tang-1 --format md --output -   on stdout
"""
STDOUT = Path("-")

LanguageOption = Annotated[Language, typer.Option(help="Of Markdown: en or zh. A page has both.")]


@app.command(epilog=EXAMPLES)
def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|RESULT.json",
            help="A run's folder, or figures of `eval`, `compare`, `judge` or `benchmark`.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where it goes, - is stdout; default: beside the source."),
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: by the ending of --output, else html.")
    ] = None,
    language: LanguageOption = "en",
) -> None:
    """Write results as one offline page, as Markdown or as JSON.

    A run's report has its training and all its results.
    """
    if output == STDOUT:
        write(tunesmith.report_text(source, form_of(None, form), language=language))
        return
    file = tunesmith.report(source, output, format=form, language=language)
    err.print("What models wrote is in it: look before you send it.")
    out.print(str(file))
