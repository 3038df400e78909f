"""Which rows a run has learnt from, so that `eval` and `compare` can say whether theirs were among them.

trained-rows.txt holds a key of each row (a hash of what it says), one a line; not the rows themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tunesmith.data.check import content_key
from tunesmith.disk import write_atomic
from tunesmith.records import Record
from tunesmith.rundir import RunDir


def write_trained_rows(run: RunDir, records: Iterable[Record], continued: str | None = None) -> None:
    """Keep the keys of `records`, and those of the run whose adapter is `continued` (a path)."""
    keys = {row_key(record) for record in records} | (trained_rows(Path(continued)) if continued else set())
    write_atomic(run.trained_rows_file, "".join(f"{key}\n" for key in sorted(keys)))


def trained_rows(folder: Path) -> set[str]:
    """The keys of a run, given by its folder or one in it (adapter/, model/); empty where it has none."""
    folder = folder.expanduser()
    for run in (RunDir(folder), RunDir(folder.parent)):
        if run.trained_rows_file.is_file():
            return set(run.trained_rows_file.read_text(encoding="utf-8").split())
    return set()


def row_key(record: Record) -> str:
    """What tells rows apart: 32 hex digits of their content, whatever their place and id."""
    return content_key(record).hex()
