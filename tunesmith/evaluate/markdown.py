"""Markdown of results: tables, texts as blocks of code, and text that stays text whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

SHOWN_TEXT = 1200


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table with an empty line behind it; whatever a cell holds stays in the cell."""
    yield "| " + " | ".join(map(escaped, columns)) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(map(escaped, row)) + " |"
    yield ""


def fenced(text: str) -> Iterator[str]:
    """A text as a block of code, whose fence is longer than any in the text; a very long one is cut."""
    text = text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]} … (+ {len(text) - SHOWN_TEXT:,})"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    yield ""
    yield fence + "text"
    yield text
    yield fence
    yield ""


def escaped(text: object) -> str:
    """Text on one line that neither Markdown nor HTML reads as anything else.

    `[0.1, 0.2]` and `f1_char` are text to both and stay readable.
    """
    plain = re.sub(r"[\r\n\u2028\u2029]+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;")
    plain = re.sub(r"([\\`*|~$])|(?<=\])(?=[(\[:])|(?<![^\W_])(?=_)|(?=_)(?![_][^\W_])", r"\\\1", plain)
    return re.sub(r"^(?=[#>\[+-](?!\d))", r"\\", plain)


def joined(lines: Sequence[str]) -> str:
    """The whole text; a lone surrogate, which JSON can carry and no file can, is written as its escape."""
    return "\n".join(lines).rstrip().encode("utf-8", "backslashreplace").decode("utf-8") + "\n"
