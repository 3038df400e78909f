"""Rows of tables: CSV, TSV, Parquet and Arrow."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.data.json_rows import Found
from tunesmith.errors import DataError


def read_csv(text: str, path: str, *, tabs: bool) -> list[Found]:
    """The rows below a header line; every cell is text. A row's line is the one it starts on.

    Raises DataError for a header with empty or doubled names and for quotes that don't close: from there on,
    nobody can tell where a row ends.
    """
    delimiter = "\t" if tabs else _delimiter(text)
    with _long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = _numbered(reader, path)
        line, header = next(rows, (1, []))
        names = [name.strip() for name in header]
        _check_header(names, f"{path}:{line}")
        return [_row(line, names, cells) for line, cells in rows]


def read_parquet(path: Path, name: str) -> list[Found]:
    """The rows of a Parquet file; line n is row n."""
    import pyarrow.parquet

    with _arrow_errors(name, "Parquet"):
        return _arrow_rows(pyarrow.parquet.ParquetFile(path).read(), name)


def read_arrow(path: Path, name: str) -> list[Found]:
    """The rows of an Arrow file (IPC file or stream, as `datasets` saves it); line n is row n."""
    import pyarrow

    with _arrow_errors(name, "Arrow"), pyarrow.memory_map(str(path)) as source:
        try:
            table = pyarrow.ipc.open_file(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            table = pyarrow.ipc.open_stream(source).read_all()
        return _arrow_rows(table, name)


def _delimiter(text: str) -> str:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    # A spreadsheet that uses the comma for decimals writes semicolons.
    return max(",;\t", key=header.count)


def _numbered(reader: Any, path: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which the row starts, its cells), without blank lines."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            broken = str(error)
            cause = (
                "a quote is opened and never closed"
                if "unexpected end" in broken
                else 'text follows a closing quote (a quote inside a cell is written "")'
                if "expected after" in broken
                else broken
            )
            raise DataError(
                f"{path}:{start}: {cause}.",
                fix='Quote a cell with quotes or line breaks; double the quotes inside: "he said ""hi""".',
            ) from None
        if cells is None:
            return
        if cells:
            yield start, cells


def _check_header(names: Sequence[str], where: str) -> None:
    fix = "The first line must name the columns, for example: instruction,input,output"
    if empty := [str(number) for number, name in enumerate(names, 1) if not name]:
        if empty == ["1"]:
            fix = "They are probably the rows' numbers: name them, or leave them out (pandas: index=False)."
        raise DataError(f"{where}: the header has no name for column {', '.join(empty)}.", fix=fix)
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: the header names {', '.join(map(repr, doubled))} twice.", fix=fix)
    if any(len(name) > 100 or "\n" in name for name in names):
        raise DataError(f"{where}: the first line isn't a header but a row.", fix=fix)


def _row(line: int, names: Sequence[str], cells: Sequence[str]) -> Found:
    if len(cells) == len(names):
        return Found(line, dict(zip(names, cells, strict=True)))
    return Found(line, None, f"{len(cells)} cells, but the header has {len(names)}")


def _arrow_rows(table: Any, name: str) -> list[Found]:
    names = table.column_names
    if doubled := sorted({column for column in names if names.count(column) > 1}):
        raise DataError(
            f"{name} has the column {', '.join(map(repr, doubled))} twice.", fix="Rename one of them."
        )
    return [Found(number, row) for number, row in enumerate(table.to_pylist(), 1)]


@contextmanager
def _arrow_errors(name: str, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        cause = str(error).strip().splitlines()[0]
        raise DataError(
            f"{name} can't be read as {kind}: {cause}.", fix="Was it copied or downloaded completely?"
        ) from None


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells of any length: the csv module stops at 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
