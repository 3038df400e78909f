"""`tunesmith data check FILE…` and `tunesmith data show FILE --model M`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.text import Text as RichText

from tunesmith.cli.console import err, json_option, out, print_json
from tunesmith.data.check import Dataset, FileSummary, survey
from tunesmith.errors import DataError
from tunesmith.records import Labelled, Message, Preference, Record, Text

app = typer.Typer(add_completion=False, no_args_is_help=True)

EXAMPLES = """\b
Examples:
  tunesmith data check train.jsonl valid.csv
  tunesmith data check my_novel --info dataset_info.json     (a name in it)
  tunesmith data check rows.json --json > report.json
Exit code 0: every row can be read; 1: not, and the list says which and why.
Lengths and control tokens depend on the model: `tunesmith data show FILE --model M`.
"""
LISTED = 50


@app.callback()
def _group() -> None:
    """Check a data file, or see which tokens are trained on."""


@app.command(epilog=EXAMPLES)
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Data files or folders.", show_default=False)
    ],
    info: Annotated[
        str | None,
        typer.Option("--info", help="A dataset_info.json; FILE is then a name in it.", show_default=False),
    ] = None,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Recognise the format of data files, count their rows, and name every bad one."""
    dataset, problems = survey(files, info)
    fine = not problems and not dataset.bad_rows
    if as_json:
        print_json(_report(dataset, problems, fine))
    else:
        for summary in dataset.files:
            _print_file(summary, _sample(dataset, summary))
        _print_problems(dataset, problems)
    raise typer.Exit(0 if fine else 1)


def _print_file(file: FileSummary, sample: Record | None) -> None:
    out.print(file.path, style="bold")
    bad = f", {len(file.bad):,} bad" if file.bad else ""
    encoding = f", {file.encoding}" if file.encoding else ""
    lines = [
        ("format", file.reason),
        ("kind", file.kind + encoding),
        ("rows", f"{file.rows:,}: {file.good:,} good{bad}"),
        ("turns", f"{file.turns:,}" if file.turns else ""),
        ("characters", f"{file.characters:,}"),
        ("left out", f"{file.left_out:,} rows (num_samples)" if file.left_out else ""),
        ("columns not read", ", ".join(file.unused_columns)),
        ("not read", ", ".join(file.not_read)),
    ]
    for name, value in lines:
        if value:
            out.print(f"  {name:<18}{value}")
    for number, (role, text) in enumerate(_spoken(sample) if sample else ()):
        out.print(
            RichText(f"  {'' if number else 'sample':<18}").append(f"{role}: ", "dim").append(_short(text))
        )


def _print_problems(dataset: Dataset, problems: list[DataError]) -> None:
    if dataset.duplicates:
        out.print(f"{dataset.duplicates:,} rows repeat an earlier one:", style="bold")
        _print_list(dataset.duplicate_rows, 3)
    if bad := [str(row) for row in dataset.bad_rows]:
        out.print(f"{len(bad):,} of {dataset.rows:,} rows can't be used:", style="bold red")
        _print_list(bad, LISTED)
        err.print("What to do: correct them, or leave them out (counted and listed) with data.bad_rows=drop.")
    for problem in problems:
        out.print("Error: ", style="bold red", end="")
        out.print(str(problem))


def _print_list(lines: list[str], limit: int) -> None:
    for line in lines[:limit]:
        out.print(f"  {line}")
    if len(lines) > limit:
        out.print(f"  … and {len(lines) - limit:,} more (see --json)")


def _report(dataset: Dataset, problems: list[DataError], fine: bool) -> dict[str, Any]:
    report = dataset.to_json()
    for summary, file in zip(dataset.files, report["files"], strict=True):
        sample = _sample(dataset, summary)
        file["sample"] = (
            [{"role": role, "content": text} for role, text in _spoken(sample)] if sample else None
        )
    errors = [{"what": e.what, "details": list(e.details), "fix": e.fix} for e in problems]
    return {"ok": fine, **report, "errors": errors}


def _sample(dataset: Dataset, summary: FileSummary) -> Record | None:
    return next((r for r in dataset.records if _path(r) == summary.path), None)


def _path(record: Record) -> str:
    return (record.conversation if isinstance(record, Labelled) else record).origin.path


def _spoken(record: Record) -> list[tuple[str, str]]:
    """(role, text) of everything a record says."""
    if isinstance(record, Text):
        return [("text", record.text)]
    if isinstance(record, Preference):
        return [
            *map(_turn, record.prompt),
            *(("chosen", _turn(turn)[1]) for turn in record.chosen),
            *(("rejected", _turn(turn)[1]) for turn in record.rejected),
        ]
    conversation = record.conversation if isinstance(record, Labelled) else record
    marks = [("label", "good" if record.label else "bad")] if isinstance(record, Labelled) else []
    return [*map(_turn, conversation.messages), *marks]


def _turn(turn: Message) -> tuple[str, str]:
    calls = "".join(json.dumps(call, ensure_ascii=False) for call in turn.tool_calls)
    return turn.role + (" (not trained)" if turn.train is False else ""), turn.content + calls


def _short(text: str) -> str:
    line = text.replace("\n", "⏎")
    return line if len(line) <= 120 else line[:120] + f"… ({len(text):,} characters)"
