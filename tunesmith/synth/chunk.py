"""A document's text -> chunks of about the size that was asked for, cut where a reader would cut.

A chunk is one stretch of the text: `text[start:end]` is its text. It never goes over the end of a section. In
this order it ends: before a heading, before an article (第…条), at a paragraph's end, at a sentence's
(。！？；), at a comma, anywhere. A poem is one chunk, however long; speech stays together as far as it fits;
a heading or a title stays with what follows it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tunesmith.synth.documents import Document
from tunesmith.synth.marks import article, heading_level, heading_text, is_speech, is_title, is_verse

Count = Callable[[str], int]
ARTICLES = 6  # a text without headings and with so many articles has a section for each
STRETCHES = 20  # sections of a text without any mark of its own
_CUTS = (
    r"(?<=[。！？…])[」』”’）)]*\s*|(?<=[.!?])[\"')\]]*\s+",
    r"(?<=[；;])\s*",
    r"(?<=[，,、：:])\s*",
    r"\s+",
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document. `headings` lead to it; `section` is its section's number in all documents.

    `verse`: it is a poem.
    """

    id: str
    document: Document
    start: int
    end: int
    section: int
    headings: tuple[str, ...] = ()
    verse: bool = False

    @property
    def text(self) -> str:
        """What stands there."""
        return self.document.text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is kept whole where it fits: an article, a poem, a paragraph, a run of speech."""

    start: int
    end: int
    headings: tuple[str, ...]
    verse: bool = False
    title: bool = False
    label: str = ""  # the article that it is


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str


def cut(document: Document, size: int, count: Count = len, first_section: int = 0) -> list[Chunk]:
    """The chunks of a document; none is above `size` by `count` but poems. Sections have running numbers."""
    chunks = []
    for number, section in enumerate(_sections(_units(document.text), document.text, size), first_section):
        for start, end, headings, verse in _packed(section, document.text, size, count):
            digest = hashlib.sha256(f"{document.sha256}:{start}:{end}".encode()).hexdigest()[:12]
            chunks.append(Chunk(digest, document, start, end, number, headings, verse))
    return chunks


def _lines(text: str) -> Iterator[_Line]:
    for found in re.finditer(r"[^\n]+", text):
        stripped = found[0].strip()
        if stripped:
            begin = found.start() + found[0].index(stripped)
            yield _Line(begin, begin + len(stripped), stripped)


def _blocks(text: str) -> list[list[_Line]]:
    """Lines without an empty one between them."""
    blocks: list[list[_Line]] = []
    end = -1
    for line in _lines(text):
        if end >= 0 and text.count("\n", end, line.start) < 2:
            blocks[-1].append(line)
        else:
            blocks.append([line])
        end = line.end
    return blocks


def _units(text: str) -> list[_Unit]:
    units: list[_Unit] = []
    path: list[tuple[int, str]] = []
    before = ""  # the line before
    label, inside = "", False  # the article whose lines these are
    for block in _blocks(text):
        titles = len(block) <= 2 and all(is_title(line.text) for line in block)  # a title, its author
        title = len(block) >= 3 and is_title(block[0].text) and not heading_level(block[0].text)
        body = block[1:] if title else block
        if is_verse([line.text for line in body]) or is_verse([line.text for line in block]):
            names = tuple(name for _, name in path)
            units.append(_Unit(block[0].start, block[-1].end, names, verse=True))
            label = ""
            continue
        for line in block:
            if level := heading_level(line.text):
                path = [*(one for one in path if one[0] < level), (level, heading_text(line.text))]
                label, inside = "", False
                units.append(_Unit(line.start, line.end, tuple(n for _, n in path), title=True))
                continue
            names = tuple(name for _, name in path)
            if found := article(line.text):
                label, inside = found, True
                units.append(_Unit(line.start, line.end, names, label=label))
            elif inside:  # the paragraphs of an article stay with it
                units[-1] = _Unit(units[-1].start, line.end, names, label=label)
            elif is_speech(line.text) and units and _spoken(units[-1], before, names):
                units[-1] = _Unit(units[-1].start, line.end, names)
            else:
                units.append(_Unit(line.start, line.end, names, title=titles))
            before = line.text
    return units


def _spoken(unit: _Unit, last: str, names: tuple[str, ...]) -> bool:
    """Whether a unit, whose last line this is, is speech under the same headings."""
    return unit.headings == names and not unit.verse and not unit.title and is_speech(last)


def _sections(units: Sequence[_Unit], text: str, size: int) -> list[list[_Unit]]:
    """Units by the headings of one depth: the first of which there are three, or the one with the most."""
    depths = [len(unit.headings) for unit in units if unit.title and unit.headings]
    counts = {depth: depths.count(depth) for depth in sorted(set(depths))}
    if counts:
        depth = next((d for d, n in counts.items() if n >= 3), max(counts, key=lambda d: counts[d]))
        return _grouped(units, [unit.headings[:depth] for unit in units])
    if sum(bool(unit.label) for unit in units) >= ARTICLES:
        number, marks = 0, []
        for unit in units:
            number += bool(unit.label)
            marks.append(number)
        return _grouped(units, marks)
    if sum(unit.verse for unit in units) >= ARTICLES:
        number, marks, waiting = 0, [], False
        for unit in units:
            number += (unit.verse and not waiting) or (unit.title and not waiting)
            waiting = unit.title
            marks.append(number)
        return _grouped(units, marks)
    length = max(3 * size, len(text) / STRETCHES)
    return _grouped(units, [int(unit.start / length) for unit in units])


def _grouped(units: Sequence[_Unit], marks: Sequence[object]) -> list[list[_Unit]]:
    found: list[list[_Unit]] = []
    last: object = None
    for unit, mark in zip(units, marks, strict=True):
        if not found or mark != last:
            found.append([])
        found[-1].append(unit)
        last = mark
    return found


def _packed(
    units: Sequence[_Unit], text: str, size: int, count: Count
) -> Iterator[tuple[int, int, tuple[str, ...], bool]]:
    """Units put together to chunks, as many as fit; `open_` are those of the chunk being filled."""
    open_: list[_Unit] = []

    def closed() -> Iterator[tuple[int, int, tuple[str, ...], bool]]:
        if open_:
            first = next((unit for unit in open_ if not unit.title), open_[0])
            yield open_[0].start, open_[-1].end, first.headings, first.verse
            open_.clear()

    for unit in units:
        alone = all(one.title for one in open_)
        fits = open_ and count(text[open_[0].start : unit.end]) <= size
        if unit.verse:
            if not alone:
                waiting = _trailing_titles(open_)
                yield from closed()
                open_.extend(waiting)
            open_.append(unit)
            yield from closed()
            continue
        if not fits and not alone:
            waiting = _trailing_titles(open_)
            yield from closed()
            open_.extend(waiting)
        start = open_[0].start if open_ else unit.start
        if count(text[start : unit.end]) <= size:
            open_.append(unit)
            continue
        open_.clear()
        headings = (*unit.headings, unit.label) if unit.label else unit.headings
        pieces = _pieces(text, start, unit.end, size, count)
        for place, (begin, end) in enumerate(pieces):
            yield begin, end, headings if place else unit.headings, False
    yield from closed()


def _trailing_titles(units: list[_Unit]) -> list[_Unit]:
    """Take the titles at the end, which belong to what follows."""
    taken: list[_Unit] = []
    while units and units[-1].title:
        taken.insert(0, units.pop())
    return taken


def _pieces(text: str, start: int, end: int, size: int, count: Count) -> list[tuple[int, int]]:
    """A stretch that is too long, cut by the first kind of place that gives parts which fit."""
    parts = _split(text, start, end, r"\s*\n\s*")
    for pattern in _CUTS:
        parts = [
            piece
            for begin, stop in parts
            for piece in (
                [(begin, stop)] if count(text[begin:stop]) <= size else _split(text, begin, stop, pattern)
            )
        ]
    parts = [piece for begin, stop in parts for piece in _anywhere(text, begin, stop, size, count)]
    pieces: list[tuple[int, int]] = []
    for begin, stop in parts:
        if pieces and count(text[pieces[-1][0] : stop]) <= size:
            pieces[-1] = (pieces[-1][0], stop)
        else:
            pieces.append((begin, stop))
    return pieces


def _split(text: str, start: int, end: int, pattern: str) -> list[tuple[int, int]]:
    bounds = [start]
    for found in re.finditer(pattern, text[start:end]):
        if 0 < found.end() < end - start:
            bounds.append(start + found.end())
    bounds.append(end)
    pieces = []
    for begin, stop in pairwise(bounds):
        stripped = text[begin:stop].strip()
        if stripped:
            begin += text[begin:stop].index(stripped)
            pieces.append((begin, begin + len(stripped)))
    return pieces


def _anywhere(text: str, start: int, end: int, size: int, count: Count) -> Iterator[tuple[int, int]]:
    while count(text[start:end]) > size:
        low, high = 1, end - start  # the longest beginning that fits, one character at least
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(text[start : start + middle]) <= size else (low, middle - 1)
        yield start, start + low
        start += low
    if start < end:
        yield start, end
