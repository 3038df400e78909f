"""PDF -> text: lines joined to paragraphs, running heads and page numbers taken out and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import quantiles

from tunesmith.errors import MissingExtraError
from tunesmith.synth.marks import ENDS, begins_anew, width
from tunesmith.synth.reading import Read, Unreadable

try:
    import pypdfium2
except ImportError:
    pypdfium2 = None

MOST_PAGES = 20_000
_NUMBER = re.compile(
    r"[-–—·\s]*(第\s*)?(page\s*)?[\divxlc]+(\s*页)?(\s*(/|of|共)\s*\d+\s*页?)?[-–—·\s]*", re.I
)
_HAN_OR_WIDE = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")


def read_pdf(data: bytes, _name: str) -> Read:
    """The text in the order in which the file has it; columns as its writer laid them down.

    Raises Unreadable for one that is encrypted or damaged, MissingExtraError without pypdfium2.
    """
    if pypdfium2 is None:
        raise MissingExtraError("Reading PDF", "pypdfium2", "documents")
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower() or "security" in str(error).lower():
            raise Unreadable("it is encrypted and asks for a password") from None
        raise Unreadable("it is damaged, or no PDF") from None
    try:
        if len(document) > MOST_PAGES:
            raise Unreadable(f"{len(document):,} pages, and {MOST_PAGES:,} are the limit")
        pages = [_lines(document, number) for number in range(len(document))]
    finally:
        document.close()
    empty = tuple(number for number, lines in enumerate(pages, 1) if not lines)
    notes = []
    if empty and len(empty) < len(pages):
        shown = ", ".join(map(str, empty[:10])) + (", …" if len(empty) > 10 else "")
        notes.append(f"{len(empty)} of {len(pages)} pages have no text, as scans have none: {shown}")
    pages, removed = _without_running_heads(pages)
    if removed:
        notes.append(f"{removed} running heads and page numbers left out")
    text = "\n".join(_paragraphs([line for lines in pages for line in lines]))
    return Read(text, tuple(notes), len(pages), empty)


def _lines(document: pypdfium2.PdfDocument, number: int) -> list[str]:
    try:
        page = document[number]
        text = page.get_textpage().get_text_range()
    except pypdfium2.PdfiumError:
        return []
    # U+FFFE is PDFium's mark of a hyphen at the end of a line, U+FFFD or U+0000 a letter without a meaning.
    text = text.replace("\ufffe", "-").replace("\0", "").replace("\x02", "-")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _without_running_heads(pages: Sequence[list[str]]) -> tuple[list[list[str]], int]:
    """Pages without the lines at their edges that are on half of all pages, or are page numbers.

    In the outermost lines digits may differ; the next ones have to be the same.
    """
    outer = Counter(line for lines in pages for line in {*map(_masked, _edges(lines, 0))})
    inner = Counter(line for lines in pages for line in {*_edges(lines, 1)})
    least = max(3, len(pages) / 2)
    kept, removed = [], 0

    def is_head(at: int, line: str, last: int) -> bool:
        if at in (0, last):
            return outer[_masked(line)] >= least or (len(pages) > 1 and bool(_NUMBER.fullmatch(line)))
        return at in (1, last - 1) and inner[line] >= least

    for lines in pages:
        gone = {at for at, line in enumerate(lines) if is_head(at, line, len(lines) - 1)}
        removed += len(gone)
        kept.append([line for at, line in enumerate(lines) if at not in gone])
    return kept, removed


def _edges(lines: Sequence[str], depth: int) -> list[str]:
    return [lines[depth], lines[-1 - depth]] if len(lines) > 2 * depth else []


def _masked(line: str) -> str:
    return re.sub(r"\d+", "0", line)


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """Lines joined where the first is full and its sentence goes on; a heading or an article begins anew."""
    if len(lines) < 2:
        return list(lines)
    full = quantiles([width(line) for line in lines], n=10)[7] * 0.8
    found = [lines[0]]
    last = lines[0]
    for line in lines[1:]:
        if (
            width(last) >= full
            and not last.endswith(ENDS)
            and not begins_anew(line)
            and not begins_anew(last, heading=True)
        ):
            found[-1] = _joined(found[-1], line)
        else:
            found.append(line)
        last = line
    return found


def _joined(before: str, after: str) -> str:
    if before.endswith("-") and after[:1].islower():
        return before[:-1] + after
    wide = _HAN_OR_WIDE.match(before[-1]) and _HAN_OR_WIDE.match(after[0])
    return before + after if wide else f"{before} {after}"
