"""What reports are written as, and which files they may replace; nothing heavy, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tunesmith.errors import UsageError

Format = Literal["html", "md", "json"]
Language = Literal["en", "zh"]
ENDINGS: dict[str, Format] = {".html": "html", ".htm": "html", ".md": "md", ".json": "json"}
MARK = "<!-- tunesmith report -->"
"""The first line of Markdown of ours, by which it is known for a report."""
_MARKS = (MARK.encode(), " · tunesmith</title>".encode(), b'"kind": "report"')


def form_of(output: Path | None, form: Format | None) -> Format:
    """The format that was asked for, or the one of the file's ending; HTML where neither says."""
    return form or ENDINGS.get(output.suffix.lower() if output else "", "html")


def check_replaceable(output: Path) -> None:
    """Raise UsageError for a folder, and for a file that is no earlier report: nothing else is replaced."""
    if output.is_dir():
        raise UsageError(
            f"{output} is a folder.", fix=f"Give a file in it: --output {output / 'report.html'}."
        )
    if not output.is_file() or not output.stat().st_size:
        return
    with output.open("rb") as opened:
        start = opened.read(2000)
    if not any(mark in start for mark in _MARKS):
        raise UsageError(
            f"{output} is there and isn't a report: it isn't overwritten.",
            fix="Give the report another name (--output FILE), or put that file somewhere else.",
        )
