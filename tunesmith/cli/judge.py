"""`tunesmith judge A [B] --judge MODEL`: a model says which answers are better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table
from tunesmith.cli.counting import Watching
from tunesmith.cli.eval import DtypeOption, Limit, References, Template, split
from tunesmith.errors import UsageError
from tunesmith.evaluate.judge.asked import TOKENS, Asked, Request
from tunesmith.evaluate.judge.prompts import Language
from tunesmith.evaluate.judge.sections import sections, title

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith judge smollm2-135m runs/tang-1 --data valid.json --judge http://127.0.0.1:8000/v1#qwen2.5-7b
  tunesmith judge before.jsonl after.jsonl --judge https://api.deepseek.com/v1#deepseek-chat@DEEPSEEK_API_KEY
  tunesmith judge runs/law-1 --data test.jsonl --judge Qwen/Qwen2.5-7B-Instruct --rubric builtin
  tunesmith judge before.jsonl after.jsonl --judge runs/judge-1 --rubric poems.yaml --json
  tunesmith judge before.jsonl after.jsonl --judge smollm2-135m --blind blind/valid
The same command goes on with what was interrupted, and asks nothing twice. More: docs/judge.md
"""


@app.command(epilog=EXAMPLES)
def judge(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="A [B] [key=value]...",
            help="Models, runs, endpoints or files of answers (.jsonl); sampling settings of A and B.",
            show_default=False,
        ),
    ],
    by: Annotated[
        str,
        typer.Option("--judge", metavar="MODEL|RUN|URL#MODEL", help="Who judges.", show_default=False),
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The prompts, in any row format; needed where a model answers."),
    ] = None,
    references: References = None,
    rubric: Annotated[
        str | None,
        typer.Option(metavar="builtin|FILE", help="Grade by criteria from 1 to 5 instead of comparing."),
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="auto|en|zh", help="Of the judge's prompts; auto is that of the data.")
    ] = "auto",
    hide: Annotated[
        bool, typer.Option("--hide-references", help="The judge doesn't see the rows' own answers.")
    ] = False,
    limit: Limit = None,
    tokens: Annotated[int, typer.Option(min=16, metavar="N", help="Tokens of a reply at most.")] = TOKENS,
    blind: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="An unsealed blind test of the same answers: agreement."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask anew what an earlier call has asked.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Verdicts (.jsonl); the figures go beside them (.json)."),
    ] = None,
    dtype: DtypeOption = "auto",
    template: Template = None,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Let a model judge two sides' answers in both orders, or grade them by a rubric."""
    names, sampling = split(words)
    if not 1 <= len(names) <= 2 or language not in ("auto", "en", "zh"):
        given = f"{', '.join(names) or 'none'}; --language {language}"
        raise UsageError(
            f"`tunesmith judge` takes one side or two, and auto, en or zh as language (given: {given}).",
            fix="Write tunesmith judge A B --data FILE --judge MODEL.",
        )
    spoken: Language | None = None if language == "auto" else "zh" if language == "zh" else "en"
    second = names[1] if len(names) == 2 else None
    truth = str(references) if references else None
    request = Request(
        names[0], second, by, data, truth, rubric, spoken, limit, not hide, tokens, dtype, template, blind,
        output, again,
    )  # fmt: skip
    Asked.of(request, sampling)  # what is wrong is told at once, before torch is waited for
    with Watching() as watch:
        result = tunesmith.judge(
            names[0], second, judge=by, data=data, truth=truth, rubric=rubric, language=spoken, limit=limit,
            references=not hide, tokens=tokens, dtype=dtype, template=template, blind=blind, output=output,
            again=again, watch=watch, note=err.print, **sampling.given(),
        )  # fmt: skip
    if as_json:
        print_json(result.content)
        return
    out.print(title(result.content), style="bold")
    for section in sections(result.content):
        out.print()
        out.print(section.title, style="bold")
        for sentence in section.sentences:
            out.print(sentence)
        grid = table(section.columns, section.rows)
        grid.show_header = any(section.columns)
        print_table(grid)
    err.print(f"Verdicts: {result.content['predictions']}")
    err.print(f"Figures:  {result.file}")
