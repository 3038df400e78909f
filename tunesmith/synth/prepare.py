"""What is known before any model is asked: texts, chunks, their parts, what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tunesmith.errors import DataError
from tunesmith.synth.chunk import Chunk, Count, cut
from tunesmith.synth.config import Language, Request
from tunesmith.synth.documents import Document, Library, read_library
from tunesmith.synth.likeness import plain
from tunesmith.synth.parts import Part, split_sections, too_near
from tunesmith.synth.prompts import language_of

SHORTEST = 16  # letters: less says too little to ask about


@dataclass(frozen=True)
class Prepared:
    """Chunks in the order of the documents. `left_out` says why, by a chunk's id; `used` are the others."""

    request: Request
    library: Library
    chunks: list[Chunk]
    parts: dict[int, Part]
    left_out: dict[str, str]
    used: list[Chunk]
    languages: dict[str, Language]
    nearest: dict[str, str] = field(default_factory=dict)  # of what repeats another chunk: that one's id

    def part(self, chunk: Chunk) -> Part:
        """The part that a chunk's rows are for."""
        return self.parts[chunk.section]

    def language(self, chunk: Chunk) -> Language:
        """The language that its document is in, or the one that was asked for."""
        return self.languages[chunk.document.sha256]

    def reasons(self) -> dict[str, int]:
        """Chunks left out, by reason."""
        return dict(Counter(self.left_out.values()))


def prepare(
    request: Request, count: Count | None = None, note: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Read, cut and split. `count` gives a text's size where that isn't its characters.

    Raises SettingsError, UsageError, MissingExtraError and DataError, each before anything is written.
    """
    request.check()
    library = read_library(request.documents, request.output)
    chunks: list[Chunk] = []
    for document in library.documents:
        section = chunks[-1].section + 1 if chunks else 0
        chunks += cut(document, request.size, count or len, section)
    left_out, nearest = _thin(chunks)
    worth = [chunk for chunk in chunks if chunk.id not in left_out]
    if not worth:
        raise DataError("The documents have no passage that is long enough.", fix="Give more text.")
    parts = split_sections(worth, request.valid, request.test, request.seed)
    _note_parts(request, parts, note)
    near = too_near(worth, parts)
    left_out |= dict.fromkeys(near, "nearly a passage of another part")
    used = [chunk for chunk in chunks if chunk.id not in left_out]
    if request.pilot is not None and request.pilot < len(used):
        step = len(used) / request.pilot
        chosen = {used[int(i * step)].id for i in range(request.pilot)}
        used = [chunk for chunk in used if chunk.id in chosen]
    languages = {one.sha256: _language(one, request) for one in library.documents}
    return Prepared(request, library, chunks, parts, left_out, used, languages, nearest | near)


def _thin(chunks: list[Chunk]) -> tuple[dict[str, str], dict[str, str]]:
    """Why a chunk is left out, and which one it repeats, by its id."""
    found: dict[str, str] = {}
    seen: dict[str, str] = {}
    same: dict[str, str] = {}
    for chunk in chunks:
        letters = plain(chunk.text)
        if len(letters) < SHORTEST:
            found[chunk.id] = "too short to ask about"
        elif letters in seen:
            found[chunk.id], same[chunk.id] = "the same text as another", seen[letters]
        seen.setdefault(letters, chunk.id)
    return found, same


def _note_parts(request: Request, parts: dict[int, Part], note: Callable[[str], None]) -> None:
    shares = {"valid": request.valid, "test": request.test}
    if empty := [part for part, share in shares.items() if share and part not in parts.values()]:
        sections = len(parts)
        note(
            f"No section is left for {' and '.join(empty)}: the documents have {sections} "
            f"{'section' if sections == 1 else 'sections'}, and a section is never divided."
        )


def _language(document: Document, request: Request) -> Language:
    return request.language or language_of(document.text)
