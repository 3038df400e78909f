"""`tunesmith make DOCUMENTS… --output FILE`: training rows from your own documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, told
from tunesmith.cli.counting import Watching
from tunesmith.errors import UsageError
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import check_endpoints
from tunesmith.settings import build, parse_overrides
from tunesmith.synth import estimate, prompts
from tunesmith.synth.config import (
    CHARACTERS,
    KINDS,
    LEAST_SCORE,
    SCORES,
    Request,
    least_scores,
    read_price,
)
from tunesmith.synth.documents import find_files
from tunesmith.synth.prepare import prepare
from tunesmith.synth.run import Result, tell

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith make novel.txt --output novel.jsonl --kind continue
  tunesmith make handbook.docx --output handbook.jsonl --model http://127.0.0.1:8000/v1#qwen2.5-7b \\
    --judge https://api.deepseek.com/v1#deepseek-chat@DEEPSEEK_API_KEY --pilot 5
  tunesmith make rules/ --output rules.jsonl --model URL#A --judge URL#B --dry-run --price 0.27,1.10
  tunesmith make rules/ --output rules.jsonl --model URL#A --judge URL#B --kind qa --kind summary
  tunesmith make --show-prompts --kind qa
The same command goes on with what was interrupted, and asks nothing twice. More: docs/make.md
"""


@app.command(epilog=EXAMPLES)
def make(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DOCUMENTS... [key=value]...",
            help="Files and folders: .txt, .md, .html, .docx, .pdf, .epub; sampling settings of the maker.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl", help="Training rows; the other files go beside them.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|RUN|URL#MODEL",
            help="Who writes the rows; `continue` needs nobody.",
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|RUN|URL#MODEL", help="Who judges them; better another.", show_default=False
        ),
    ] = None,
    no_judge: Annotated[bool, typer.Option("--no-judge", help="Let nobody judge.")] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(KINDS),
            help="What rows are; may be given several times. Default: qa.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option("--format", metavar="messages|alpaca|prompt-completion", help="How rows are written."),
    ] = "messages",
    language: Annotated[
        str, typer.Option(metavar="auto|en|zh", help="Of the prompts; auto is each document's.")
    ] = "auto",
    size: Annotated[int, typer.Option(metavar="N", help="Of a chunk at most.")] = 1000,
    count_by: Annotated[
        str, typer.Option(metavar="characters|MODEL", help="What --size counts: or a model's tokens.")
    ] = CHARACTERS,
    per_chunk: Annotated[
        int, typer.Option(min=1, max=50, metavar="N", help="Rows asked for of a chunk.")
    ] = 3,
    valid: Annotated[float, typer.Option(help="Share of the text whose rows are for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the text whose rows are for testing.")] = 0.1,
    recall: Annotated[
        float, typer.Option(help="Share of training chunks of which a row is kept out of training.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Which sections are for what.")] = 42,
    min_score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|NAME=N",
            help=f"Least score from 1 to 5, of all or of one of {', '.join(SCORES)}. Default: {LEAST_SCORE}.",
            show_default=False,
        ),
    ] = None,
    keep_flagged: Annotated[
        bool,
        typer.Option(
            "--keep-flagged", help="Keep answers with numbers or names that the passage doesn't have."
        ),
    ] = False,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System prompt of every row.")] = "",
    instruction: Annotated[
        str, typer.Option(metavar="TEXT", help="Words before a passage that is to be continued.")
    ] = "",
    pilot: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only so many chunks, spread over all.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes in calls, tokens and money; ask nobody.")
    ] = False,
    max_calls: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop at so many calls, earlier ones counted.")
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, metavar="X", help="Stop before it costs more, earlier calls counted."),
    ] = None,
    price: Annotated[
        str | None, typer.Option(metavar="READ,WRITTEN", help="Of the maker, per million tokens.")
    ] = None,
    judge_price: Annotated[str | None, typer.Option(metavar="READ,WRITTEN", help="Of the judge.")] = None,
    tokens: Annotated[int, typer.Option(min=16, metavar="N", help="Of the maker's reply at most.")] = 1024,
    judge_tokens: Annotated[int, typer.Option(min=16, metavar="N", help="Of the judge's at most.")] = 512,
    show_prompts: Annotated[
        bool, typer.Option("--show-prompts", help="Print the prompts with their versions.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace row files that were changed since or aren't ours.")
    ] = False,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Make training rows from documents: one model writes them, another judges.

    Documents are split into training, validation and test before anything is made. Every call is kept.
    """
    kinds = tuple(dict.fromkeys(kind or ["qa"]))
    if unknown := [one for one in kinds if one not in KINDS]:
        raise UsageError(f"There is no kind {', '.join(unknown)}.", fix=f"The kinds are {', '.join(KINDS)}.")
    if show_prompts:
        out.print(prompts.shown(kinds))  # type: ignore[arg-type]
        return
    settings = [word for word in words or () if "=" in word and not Path(word).exists()]
    documents = [word for word in words or () if word not in settings]
    if output is None or not documents or language not in ("auto", "en", "zh"):
        raise UsageError(
            "`tunesmith make` takes documents and an output"
            + (
                "."
                if language in ("auto", "en", "zh")
                else f", and auto, en or zh as language (given: {language})."
            ),
            fix="Write tunesmith make DOCUMENTS --output rows.jsonl --model MODEL --judge JUDGE.",
        )
    request = Request(
        tuple(map(Path, documents)), output, model, judge, no_judge, kinds, form,  # type: ignore[arg-type]
        None if language == "auto" else language,  # type: ignore[arg-type]
        size, count_by, per_chunk, valid, test, recall, seed, least_scores(min_score or []),
        "keep" if keep_flagged else "drop", system, instruction, pilot, max_calls, max_cost,
        read_price(price), read_price(judge_price), tokens, judge_tokens, force,
    )  # fmt: skip
    request.check()
    sampling = build(Sampling, parse_overrides(settings))
    for line in sampling.useless():
        told(line)
    # What is wrong is told at once, before torch is waited for.
    find_files(documents)
    check_endpoints([name for name in (model,) if name], sampling)
    check_endpoints([name for name in (judge,) if name], Sampling.model_validate({}))
    if dry_run:
        _dry_run(request, as_json=as_json)
        return
    with Watching("call") as watch:
        result = tunesmith.make(request, watch=watch, note=err.print, **sampling.given())
    if as_json:
        print_json(result.content)
        return
    _tell(result, output)


def _dry_run(request: Request, *, as_json: bool) -> None:
    if request.count_by != CHARACTERS:
        raise UsageError("--dry-run counts characters alone.", fix="Leave --count-by out, or --dry-run.")
    prepared = prepare(request, note=err.print)
    tell(prepared, err.print)
    if as_json:
        print_json(estimate.content(prepared))
        return
    out.print("\n".join(estimate.lines(prepared)))


def _tell(result: Result, output: Path) -> None:
    out.print("\n".join(result.lines))
    content = result.content
    if content["cost"] is not None:
        without = f", without {content['without_price'][0]}" if content["without_price"] else ""
        out.print(f"cost so far: {content['cost']:.4g}{without}")
    for name in content["files"]:
        err.print(f"Rows: {output.with_name(name)}")
    err.print(f"Report: {result.file}")
    if content["stopped"]:
        err.print(
            f"Stopped: {content['stopped']}. The same command with a higher limit goes on.", style="bold"
        )
    elif content["settings"]["pilot"]:
        err.print(
            "That was a pilot. The same command without --pilot goes on; what was answered isn't asked again."
        )
    err.print(f"Next: tunesmith data check {output}")
