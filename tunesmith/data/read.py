"""Files and folders -> raw rows, each with its file and line. Rows read + bad rows = rows in the file.

    json, jsonl    a list of objects, or one object a line
    csv, tsv       a header line, then rows
    parquet, arrow
    txt, md        one text a file

A folder holds files of one kind; those on its own level are read, in the order of their names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.encoding import decode
from tunesmith.data.json_rows import Found, read_json
from tunesmith.data.table_rows import read_arrow, read_csv, read_parquet
from tunesmith.errors import DataError
from tunesmith.records import Origin
from tunesmith.settings import nearest

KINDS = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
    ".txt": "txt", ".text": "txt", ".md": "md", ".markdown": "md",
}  # fmt: skip
KNOWN = "json, jsonl, csv, tsv, parquet, arrow, txt, md"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its file: an object with columns, or a str where the file holds plain text."""

    value: dict[str, Any] | str
    origin: Origin


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used, and why."""

    origin: Origin
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


@dataclass(frozen=True)
class RawFile:
    """One file as it was read. `kind` is what it turned out to be, `encoding` is empty for binary tables."""

    path: str
    kind: str
    encoding: str
    sha256: str
    rows: list[RawRow]
    bad: list[BadRow]


def read_file(path: str) -> RawFile:
    """One file's rows. Raises DataError where it is missing, empty, undecodable or not a list of rows."""
    data = read_bytes(path)
    kind = _kind(path, data)
    encoding = ""
    if kind == "parquet":
        found = read_parquet(Path(path), path)
    elif kind == "arrow":
        found = read_arrow(Path(path), path)
    else:
        text, encoding = decode(data, path)
        if "\n" not in text:  # lines ended by \r alone: old Mac files
            text = text.replace("\r", "\n")
        kind, found = _text_rows(kind, text, path)
    if not found:
        raise DataError(f"{path} holds no rows.", fix="Is it the right file?")
    rows: list[RawRow] = []
    bad: list[BadRow] = []
    for number, (line, value, reason) in enumerate(found):
        origin = Origin(path, line, number)
        if not reason and not isinstance(value, dict | str):
            reason = f"the row is {_a_kind(value)}, not an object with columns"
        if reason:
            bad.append(BadRow(origin, reason))
        else:
            rows.append(RawRow(value, origin))
    return RawFile(path, kind, encoding, hashlib.sha256(data).hexdigest(), rows, bad)


def files_of(path: str) -> list[str]:
    """The file itself, or the data files on a folder's own level. DataError for none or mixed kinds."""
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    names = [entry.name for entry in _entries(folder) if entry.is_file() and not is_beside_data(entry.name)]
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(FAMILIES.get(KINDS.get(Path(name).suffix.lower(), ""), "others"), []).append(name)
    if len(families) > 1 or "others" in families:
        raise DataError(
            f"The folder {path} holds files of more than one kind."
            if len(families) > 1
            else f"The folder {path} holds files that aren't data.",
            details=[f"{family}: {_some(members)}" for family, members in families.items()],
            fix=f"Keep one kind in the folder, or name the files one by one. Known kinds: {KNOWN}.",
        )
    if not names:
        below = sorted({str(file.parent) for file in folder.rglob("*") if file.suffix.lower() in KINDS})
        raise DataError(
            f"The folder {path} holds no data file on its own level.",
            fix=f"Give the folder itself: {_some(below)}." if below else f"Known kinds: {KNOWN}.",
        )
    return [os.path.join(path, name) for name in names]  # noqa: PTH118 - Path would change the name as given


def not_read(path: str) -> list[str]:
    """What a folder holds besides the files that `files_of` names: subfolders, README and the like."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    return [
        entry.name + ("/" if entry.is_dir() else "")
        for entry in _entries(folder)
        if entry.is_dir() or is_beside_data(entry.name)
    ]


def joined(problems: Sequence[DataError]) -> DataError:
    """One error that says everything several ones say."""
    if len(problems) == 1:
        return problems[0]
    details = [line for error in problems for line in (error.what, *(f"  {d}" for d in error.details))]
    fixes = dict.fromkeys(error.fix for error in problems if error.fix)
    return DataError(f"{len(problems)} files can't be used.", details=details, fix=" ".join(fixes))


def _text_rows(kind: str, text: str, path: str) -> tuple[str, list[Found]]:
    if not text.strip():
        raise DataError(f"{path} is empty.", fix="Is it the right file?")
    if kind in ("json", "jsonl"):
        return read_json(text, path, lines_expected=kind == "jsonl")
    if kind in ("csv", "tsv"):
        return kind, read_csv(text, path, tabs=kind == "tsv")
    return kind, [Found(1, text.replace("\r\n", "\n"))]


def read_bytes(path: str) -> bytes:
    """A file's bytes. Raises DataError where it is missing (with the nearest name), empty or unreadable."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        hint = nearest(file.name, [entry.name for entry in _entries(file.parent)])
        raise DataError(
            f"There is no file {path}{hint}.",
            fix="Check the path; it is taken from the folder you are in.",
        ) from None
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror}.", fix="Check the path and its permissions."
        ) from None
    if not data:
        raise DataError(f"{path} is empty.", fix="Is it the right file?")
    return data


def _kind(path: str, data: bytes) -> str:
    suffix = Path(path).suffix.lower()
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            if kind in ("parquet", "arrow"):
                return kind
            raise DataError(f"{path} is {kind}.", fix=_ADVICE.get(suffix, f"Known kinds: {KNOWN}."))
    if suffix in KINDS:
        return KINDS[suffix]
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        return "json"
    raise DataError(
        f"{path}: {'the kind ' + suffix if suffix else 'a file without an ending'} isn't known here.",
        fix=_ADVICE.get(suffix, f"Known kinds: {KNOWN}."),
    )


_MAGIC = (
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"PK\x03\x04", "a zip archive (or an Office document)"),
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)"),
    (b"BZh", "compressed (bzip2)"),
    (b"\xfd7zXZ\x00", "compressed (xz)"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
)
_TABLE = "Save the sheet as CSV (UTF-8)."
_UNPACK = "Unpack it first."
_DOCUMENT = "Save its text as .txt or .md."
_ADVICE = {
    ".xlsx": _TABLE, ".xls": _TABLE, ".ods": _TABLE,
    ".gz": _UNPACK, ".zip": _UNPACK, ".zst": _UNPACK, ".bz2": _UNPACK, ".xz": _UNPACK, ".tar": _UNPACK,
    ".pdf": _DOCUMENT, ".docx": _DOCUMENT, ".doc": _DOCUMENT, ".epub": _DOCUMENT, ".html": _DOCUMENT,
    ".pkl": "Pickle files can run code and are never opened; save as Parquet.",
}  # fmt: skip
FAMILIES = {
    "json": "json and jsonl", "jsonl": "json and jsonl", "csv": "csv and tsv", "tsv": "csv and tsv",
    "parquet": "parquet", "arrow": "arrow", "txt": "text", "md": "text",
}  # fmt: skip


def is_beside_data(name: str) -> bool:
    """Whether a name is of those that data folders carry besides their rows."""
    name = name.lower()
    return (
        name.startswith(".")
        or name.split(".")[0] in {"readme", "license", "licence", "changelog"}
        or name in {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError:
        return []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _a_kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else f"{value!r}"
