"""Findings as `eval` and `compare` print them: what they say, or with --findings the rows as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tunesmith.cli.console import err, out, print_table, table
from tunesmith.evaluate.findings import sections

FindingsOption = Annotated[
    bool, typer.Option("--findings", help="Show the rows behind the findings.", show_default=False)
]


def tell_findings(result: Mapping[str, Any], *, whole: bool) -> None:
    """Print the sections of a result: titles and sentences, and their tables where `whole`."""
    found = sections(result)
    if found and "keys" in result:
        # Of several models these sentences are about two.
        out.print()
        out.print(f"Here A = {result['a']['model']},  {result['keys'][1].upper()} = {result['b']['model']}")
    for section in found:
        if not section.sentences and not whole:
            continue
        out.print()
        out.print(section.title, style="bold")
        for sentence in section.sentences:
            out.print(f"  {sentence}")
        if whole and section.rows:
            print_table(table(section.columns, section.rows))
    if not whole and any(section.rows for section in found):
        out.print()
        err.print("With --findings: the rows themselves.", style="dim")
