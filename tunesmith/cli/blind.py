"""`tunesmith blind new|serve|page|report`: a test by people who don't know whose answer is whose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table, told, write
from tunesmith.cli.counting import answering
from tunesmith.cli.report import STDOUT, LanguageOption
from tunesmith.disk import write_atomic
from tunesmith.errors import RunError, UsageError
from tunesmith.evaluate.blind.folder import open_test
from tunesmith.evaluate.blind.markdown import blind_markdown
from tunesmith.evaluate.blind.new import ITEMS, REPEATS, Made, Request, new
from tunesmith.evaluate.blind.ratings import read_raters
from tunesmith.evaluate.blind.tables import RATER_COLUMNS, rater_rows, summary_rows
from tunesmith.evaluate.formats import check_replaceable
from tunesmith.evaluate.wins import wins_needed
from tunesmith.infer.config import Sampling
from tunesmith.model.config import Dtype
from tunesmith.records import Conversation
from tunesmith.rundir import is_run, open_run
from tunesmith.settings import build, parse_overrides
from tunesmith.words import counted

app = typer.Typer(add_completion=False, no_args_is_help=True)

NEW_EXAMPLES = """\b
Examples:
  tunesmith blind new smollm2-135m runs/tang-1 --data valid.json
  tunesmith blind new runs/tang-1 runs/tang-2 --data valid.json --items 100 temperature=0.7 seed=1
  tunesmith blind new before.jsonl after.jsonl --ask "Which is the better poem?"
The same command goes on with what was interrupted. More: docs/blind.md
"""
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The test's folder.", show_default=False)]


@app.callback()
def _group() -> None:
    """Let people judge two models without knowing which is which."""


@app.command("new", epilog=NEW_EXAMPLES)
def new_(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [key=value]...",
            help="Two models, runs or files of answers (.jsonl); sampling settings.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The prompts, in any row format; needed where a model answers."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the test goes; default: blind/<data>.")
    ] = None,
    items: Annotated[int, typer.Option(min=1, metavar="N", help="Rows that are drawn.")] = ITEMS,
    repeats: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share that is shown again with sides swapped.")
    ] = REPEATS,
    ask: Annotated[
        str, typer.Option(metavar="TEXT", help="The question to raters; default: which is better.")
    ] = "",
    title: Annotated[str, typer.Option(metavar="TEXT", help="The page's title, without names.")] = "",
    references: Annotated[
        bool, typer.Option("--references", help="Let raters look at the rows' own answers.")
    ] = False,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = "auto",
    template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Chat template, for models without one.")
    ] = None,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Draw rows, let both models answer, and seal which is which."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in settings]
    chosen = build(Sampling, parse_overrides(settings))
    for line in chosen.useless():
        told(line)
    sampling = chosen.given()
    if len(names) != 2:
        raise UsageError(
            f"`tunesmith blind new` takes two models, runs or files (given: {', '.join(names) or 'none'}).",
            fix=f"Write tunesmith blind new {_base_of(names)} --data FILE.",
        )
    asked = {"dtype": dtype, "template": template, **sampling}
    request = Request(names[0], names[1], data, items, repeats, title, ask, references, asked)

    def answer(name: str, prompts: Sequence[Conversation], file: Path) -> None:
        err.print(f"{counted(len(prompts), 'answer')} by {name}")
        with answering(len(prompts)) as watch:
            tunesmith.generate(
                name,
                prompts,
                file,
                existing="resume",
                dtype=dtype,
                template=template,
                watch=watch,
                **sampling,
            )

    made = new(request, answer, output=output)
    if as_json:
        print_json(_made_json(made))
        return
    _tell_made(made)
    out.print(str(made.test.path))


@app.command(
    epilog="\b\nExamples:\n  tunesmith blind serve blind/valid\n"
    "  tunesmith blind serve blind/valid --port 8010"
)
def serve(
    folder: Folder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
) -> None:
    """Let raters work on a page of this machine, until Ctrl-C."""

    def ready(link: str) -> None:
        err.print("Raters open this link on this machine (the key is part of it, and new at each start):")
        out.print(link)
        out.file.flush()
        err.print("Every choice is saved at once. Ctrl-C ends; the same command goes on.")

    try:
        tunesmith.blind_serve(folder, port=port, ready=ready)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped. {_so_far(folder)}") from None


@app.command(
    epilog="\b\nExamples:\n  tunesmith blind page blind/valid\n"
    "  tunesmith blind page blind/valid --output poems.html"
)
def page(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default: FOLDER/page.html.")
    ] = None,
) -> None:
    """Write one offline file to send to raters.

    It saves a file that they send back.
    """
    file = tunesmith.blind_page(folder, output)
    err.print("Send this file. Raters open it in a browser and send back what it saves; then:")
    err.print(f"tunesmith blind report {folder} --ratings FILE [--ratings FILE …]")
    out.print(str(file))


@app.command(
    epilog="\b\nExamples:\n  tunesmith blind report blind/valid\n"
    "  tunesmith blind report blind/valid --ratings ratings-Li.json --ratings ratings-Wang.json\n"
    "  tunesmith blind report blind/valid --output votes.md --language zh"
)
def report(
    folder: Folder,
    ratings: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What a rater's page saved; may be given several times."),
    ] = None,
    early: Annotated[bool, typer.Option("--early", help="Unseal although a rater isn't through.")] = False,
    late: Annotated[
        bool, typer.Option("--late", help="Count ratings that came after the unsealing too.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="The report as Markdown too; - is stdout.")
    ] = None,
    language: LanguageOption = "en",
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Unseal the test and say what the votes are worth.

    Ratings that come later don't count.
    """
    if output is not None:
        check_replaceable(output)
    was_sealed = open_test(folder).unsealed() is None
    content = tunesmith.blind_report(folder, ratings or (), early=early, late=late)
    if was_sealed:
        err.print("This report unseals the test: from now on no rating counts.")
    if output == STDOUT:
        write(blind_markdown(content, language))
        return
    if output is not None:
        write_atomic(output, blind_markdown(content, language))
    if as_json:
        print_json(content)
        return
    _tell_report(content)
    err.print(f"Report: {open_test(folder).report_file}" + (f", {output}" if output else ""))


def _tell_report(content: dict[str, Any]) -> None:
    out.print(f"A = {content['a']['model']},  B = {content['b']['model']}", style="bold")
    out.print(f"{content['verdict'][0].upper()}{content['verdict'][1:]}.", style="bold")
    out.print()
    grid = table(("", ""), summary_rows(content))
    grid.show_header = False
    print_table(grid)
    out.print()
    print_table(table(RATER_COLUMNS, rater_rows(content), numbers=RATER_COLUMNS[1:-1]))
    for note in content["notes"]:
        err.print(note)


def _tell_made(made: Made) -> None:
    again = f" and {made.repeats} of them again with sides swapped" if made.repeats else ""
    err.print(f"{counted(made.pairs, 'pair')} of answers to rate{again}; which is which is sealed.")
    if made.alike:
        err.print(f"{counted(made.alike, 'row')} with the same answer from both left out: nothing to choose.")
    if made.pairs < 20:
        err.print(_few(made.pairs))
    err.print(f"Next: tunesmith blind serve {made.test.path}   (raters on this machine)")
    err.print(f"or:   tunesmith blind page {made.test.path}    (one file for raters elsewhere)")


def _few(pairs: int) -> str:
    """What so small a test can show at most, in the report's own figures."""
    wins = wins_needed(pairs)
    if wins is None:
        return f"That is too few: {counted(pairs, 'vote')} can't show a difference; 6 for one side can."
    return f"That is few: if none of {pairs} is a tie, {wins} wins are needed for p < 0.05."


def _made_json(made: Made) -> dict[str, Any]:
    counts = {"pairs": made.pairs, "repeats": made.repeats, "alike": made.alike}
    return {"folder": str(made.test.path), **counts}


def _base_of(names: Sequence[str]) -> str:
    """What to write instead of one name: a run's base beside it."""
    if len(names) == 1 and Path(names[0]).is_dir() and is_run(Path(names[0])):
        base = (open_run(Path(names[0])).job().get("base") or {}).get("name")
        return f"{base or 'A'} {names[0]}"
    return "A B"


def _so_far(folder: Path) -> str:
    try:
        raters = read_raters(open_test(folder))
    except RunError:
        return ""
    choices = sum(len(rater.choices) for rater in raters)
    return f"{counted(choices, 'choice')} by {counted(len(raters), 'rater')} saved."
