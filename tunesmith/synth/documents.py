"""Documents -> texts: .txt and .md as they are; .html, .epub, .docx and .pdf by the extra `documents`.

Nothing is fetched, whatever a document names. What can't be read is named with its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.encoding import decode
from tunesmith.errors import DataError, TunesmithError, UsageError
from tunesmith.synth import markup, pdf
from tunesmith.synth.reading import Read, Unreadable

LARGEST = 512 * 2**20  # bytes of a file
PLAIN = {".txt", ".text", ".md", ".markdown"}
READERS: dict[str, Callable[[bytes, str], Read]] = {
    ".html": markup.read_html,
    ".htm": markup.read_html,
    ".xhtml": markup.read_html,
    ".epub": markup.read_epub,
    ".docx": markup.read_docx,
    ".pdf": pdf.read_pdf,
}
_ELSEWHERE = {
    ".doc": "the old Word format; save it as .docx",
    ".wps": "the format of WPS; save it as .docx",
    ".odt": "the format of OpenDocument; save it as .docx",
    ".rtf": "rich text; save it as .docx",
    ".mobi": "the format of Kindle; convert it to .epub",
    ".azw3": "the format of Kindle; convert it to .epub",
}


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the file it came from. `name` is the file's, without the folders of this machine.

    `sha256` is of the file's bytes; offsets count characters of `text`. `empty_pages` are a PDF's pages
    without text, from 1; `notes` say what was left out or isn't as usual.
    """

    name: str
    sha256: str
    text: str
    notes: tuple[str, ...] = ()
    pages: int = 0
    empty_pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that wasn't read, and why."""

    name: str
    reason: str


@dataclass
class Library:
    """What was read and what wasn't."""

    documents: list[Document] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)


def find_files(paths: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """The files that paths and folders mean, by name, each once. Raises UsageError for what isn't there.

    Hidden files and folders inside folders are no documents.
    """
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing or not paths:
        raise UsageError(
            "There is no such document." if missing else "No document is given.",
            details=missing,
            fix="Give files or folders of .txt, .md, .html, .docx, .pdf or .epub.",
        )
    found: list[tuple[str, Path]] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        for file in _below(path) if path.is_dir() else [path]:
            if (real := file.resolve()) in seen:
                continue
            seen.add(real)
            inside = file.relative_to(path).as_posix()
            top = path.resolve().name
            found.append((f"{top}/{inside}" if path.is_dir() else file.name, file))
    return _told_apart(found)


def read_library(paths: Sequence[str | Path], output: Path | None = None) -> Library:
    """Read everything, or say why not. The files of `output` in a folder are no documents.

    Raises UsageError as `find_files` does, MissingExtraError, and DataError if nothing could be read.
    """
    library, by_hash = Library(), dict[str, str]()
    given = {Path(path).resolve() for path in paths}
    for name, file in find_files(paths):
        if output is not None and file.resolve() not in given and _is_of(output, file):
            continue
        try:
            document = _read(name, file)
        except Unreadable as error:
            library.unread.append(Unread(name, str(error)))
            continue
        if document.sha256 in by_hash:
            library.unread.append(Unread(name, f"the same file as {by_hash[document.sha256]}"))
            continue
        by_hash[document.sha256] = name
        library.documents.append(document)
    if not library.documents:
        raise DataError(
            "None of the documents could be read.",
            details=[f"{one.name}: {one.reason}" for one in library.unread],
            fix="Give text, or files whose text can be selected in a viewer.",
        )
    return library


def _read(name: str, file: Path) -> Document:
    ending = file.suffix.lower()
    if ending not in PLAIN and ending not in READERS:
        what = _ELSEWHERE.get(ending, f"{ending or 'a file without an ending'} isn't a format that is read")
        raise Unreadable(what)
    try:
        if (bytes_there := file.stat().st_size) > LARGEST:
            raise Unreadable(f"{bytes_there / 2**20:,.0f} MiB, and {LARGEST // 2**20} are the limit")
        data = file.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    try:
        read = _plain(data, name) if ending in PLAIN else READERS[ending](data, name)
    except (Unreadable, TunesmithError):
        raise
    except Exception as error:  # one odd document doesn't end the whole; parsers raise anything
        raise Unreadable(f"it is damaged, or its reader has a fault ({type(error).__name__})") from error
    text = read.text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        pages = f": none of its {read.pages} pages has any (a scan?)" if read.pages else ""
        raise Unreadable(f"there is no text in it{pages}")
    return Document(name, hashlib.sha256(data).hexdigest(), text, read.notes, read.pages, read.empty_pages)


def _plain(data: bytes, name: str) -> Read:
    try:
        text, encoding = decode(data, name)
    except TunesmithError as error:
        raise Unreadable(error.what.removeprefix(name).strip()) from None
    return Read(text, () if encoding.startswith("utf-8") else (f"read as {encoding}",))


def _below(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in files if not any(n.startswith(".") for n in p.relative_to(folder).parts))


def _is_of(output: Path, file: Path) -> bool:
    """Whether a file is one that an output has: OUTPUT.jsonl, OUTPUT.valid.jsonl, OUTPUT.calls.sqlite-wal."""
    if file.resolve().parent != output.resolve().parent:
        return False
    stem = re.escape(output.name.removesuffix(".jsonl"))
    parts = r"(\.(valid|test|recall|sources|rejected))?\.jsonl|\.report\.json|\.calls\.sqlite(-\w+)?"
    return re.fullmatch(rf"{stem}({parts})", file.name) is not None


def _told_apart(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    names: dict[str, int] = {}
    apart = []
    for name, file in found:
        names[name] = names.get(name, 0) + 1
        apart.append((name if names[name] == 1 else f"{name} ({names[name]})", file))
    return apart
