"""What verbs print with: text for people on stderr (`err`), results on stdout (`out`, `print_json`).

Both consoles take text as it is: no `[markup]`, no emoji codes, no number colouring, no wrapping inside
words or lines, because a user's rows may hold any of these. Style with `err.print(text, style="bold")` or
`rich.text.Text`.
"""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tunesmith.errors import TunesmithError

# What a terminal would obey instead of showing: control characters other than line feed and tab, as pictures.
_PICTURES = {**{c: 0x2400 + c for c in range(0x20) if c not in (9, 10)}, 0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class _Console(Console):
    """A console on which the rows of a data file can't move the cursor, change colours or ring."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(printable, objects), **options)

    def on_broken_pipe(self) -> None:
        """The reader has gone: for whoever prints to decide. rich would end the program."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads this")

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever is drawn ends up here as pieces of text: cells and titles of tables, bars."""
        for segment in super().render(renderable, options):
            # Those with control codes are rich's own, which move a progress bar's cursor.
            shown = segment.text if segment.control else segment.text.translate(_PICTURES)
            yield Segment(shown, segment.style, segment.control)


def printable(value: Any) -> Any:
    """Text with its control characters as pictures (␛), one for one; anything else as it is."""
    if isinstance(value, str):
        return value.translate(_PICTURES)
    if isinstance(value, Text):
        shown = value.copy()
        shown.plain = value.plain.translate(_PICTURES)
        return shown
    return value


out = _Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = _Console(markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True)

# For every verb that can answer a machine: `as_json: Annotated[bool, json_option] = False`.
json_option = typer.Option("--json", help="Print one JSON object on stdout, for programs.")
# What several verbs take: a job or a run, and words that win over the job's file.
JobOrRun = Annotated[
    Path, typer.Argument(metavar="JOB.yaml|RUN", help="The job file, or a run's folder.", show_default=False)
]
JobSettings = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings that win over the file's.")
]


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, characters as they are (UTF-8 in a pipe, see `utf8_streams`).

    Raises ValueError for a value that JSON doesn't know, such as NaN, before anything is printed.
    """
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write(text: str) -> None:
    """Write what a model wrote to stdout: a file or a pipe gets every character as it is, a terminal pictures
    of those that it would obey.
    """
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def typed(text: str) -> str:
    """Text from the command line or a terminal, fit for a tokenizer: bytes that aren't UTF-8 become �."""
    # Python keeps them as surrogates, so that the names of files survive.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def told(line: str) -> None:
    """A line about what is going on, beside the results."""
    err.print(line, style="dim")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = (), title: str = ""
) -> Table:
    """A table of plain text that folds long cells instead of cutting them.

    `numbers` names the columns that are aligned to the right. Chinese counts as two cells a character.
    """
    built = Table(title=title or None, title_justify="left", header_style="bold", pad_edge=False, box=None)
    for name in columns:
        built.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        built.add_row(*map(_cell, row))
    return built


def print_table(renderable: RenderableType, console: Console | None = None) -> None:
    """Print a table as wide as the terminal, or as wide as it wants to be in a pipe or file."""
    console = console or out
    if console.is_terminal:
        console.print(renderable)
        return
    # Without a terminal there is no width to keep, and a cut or folded path would be lost to programs.
    wanted = _plain(100_000).measure(renderable).maximum
    page = _plain(max(console.width, wanted))
    with page.capture() as captured:
        page.print(renderable)
    console.print("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def print_what_fits(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[str],
    dispensable: Sequence[str],
    console: Console | None = None,
) -> list[str]:
    """Print a table; a terminal too narrow for it gets it without `dispensable` columns, the first one first.

    Returns the columns that were left out.
    """
    console, left_out = console or out, list[str]()
    while True:
        kept = [i for i, name in enumerate(columns) if name not in left_out]
        built = table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], numbers=numbers)
        wanted = _plain(100_000).measure(built).maximum
        if not console.is_terminal or wanted <= console.width or len(left_out) == len(dispensable):
            print_table(built, console)
            return left_out
        left_out.append(dispensable[len(left_out)])


def fail(error: TunesmithError) -> NoReturn:
    """Show an error with its cause and remedy on stderr, and end with its exit code."""
    what, *rest = str(error).split("\n")
    err.print("Error: ", style="bold red", end="")
    err.print(what, style="bold")
    if rest:
        err.print("\n".join(rest))
    raise SystemExit(error.exit_code)


def utf8_streams() -> None:
    """Make stdout and stderr write UTF-8 into pipes and files, and never fail over a character.

    A lone surrogate (from a damaged file name) becomes `\\udcXX`, which JSON reads back.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is None:
            continue
        if stream.isatty():
            reconfigure(errors="replace")  # a terminal shows its own encoding
        else:
            reconfigure(encoding="utf-8", errors="backslashreplace")


def _plain(width: int) -> Console:
    return _Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)


def _cell(value: object) -> Any:
    rich = hasattr(value, "__rich_console__") or hasattr(value, "__rich__")
    return printable(value if rich else Text("" if value is None else str(value)))
