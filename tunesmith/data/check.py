"""Data files -> records, every row accounted for before training: good + bad = rows in the file.

`load` reads some files, `load_data` the training and validation rows of a job, `survey` whatever can be said
about files that may be broken.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.config import DataFile, DataSettings
from tunesmith.data.dataset_info import check_columns, named, resolve
from tunesmith.data.formats import Format, RowError, not_used, parse, recognise
from tunesmith.data.prompts import read_prompts as read_prompts
from tunesmith.data.prompts import read_references as read_references
from tunesmith.data.read import BadRow, files_of, joined, not_read, read_file
from tunesmith.errors import DataError
from tunesmith.records import Conversation, Labelled, Message, Origin, Preference, Record, Text
from tunesmith.words import counted


@dataclass
class FileSummary:
    """What one file holds. `rows` counts every row in it: good ones and the `bad`.

    `taken`: records that go into the data set, each repetition counted (`turns` and `characters` are those of
    the rows taken, once each); `left_out`: good rows that don't, because of `weight` or num_samples;
    `to_valid`: good rows moved to the validation rows. `unused_columns` hold something that the format
    doesn't read; `not_read` names what its folder holds besides rows.
    """

    path: str
    format_name: str
    reason: str
    rows: int
    bad: list[BadRow]
    encoding: str
    kind: str = ""
    sha256: str = ""
    weight: float = 1.0
    taken: int = 0
    left_out: int = 0
    to_valid: int = 0
    turns: int = 0
    characters: int = 0
    unused_columns: list[str] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)

    @property
    def good(self) -> int:
        """Rows that can be used."""
        return self.rows - len(self.bad)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON takes it."""
        return {
            "path": self.path, "kind": self.kind, "encoding": self.encoding, "sha256": self.sha256,
            "format": self.format_name, "reason": self.reason, "rows": self.rows, "good": self.good,
            "bad_rows": [_bad_json(row) for row in self.bad],
            "weight": self.weight, "taken": self.taken, "left_out": self.left_out, "to_valid": self.to_valid,
            "turns": self.turns, "characters": self.characters,
            "unused_columns": self.unused_columns, "not_read": self.not_read,
        }  # fmt: skip


@dataclass
class Dataset:
    """Records ready to be encoded, and where they come from.

    `duplicates` counts rows that repeat an earlier one (they stay in); `overlap` counts validation rows that
    are training rows too. Each entry of `duplicate_rows` and `overlap_rows` names both places.
    """

    records: list[Record]
    files: list[FileSummary]
    duplicates: int = 0
    duplicate_rows: list[str] = field(default_factory=list)
    overlap: int = 0
    overlap_rows: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows in the files, good and bad, before weights."""
        return sum(file.rows for file in self.files)

    @property
    def bad_rows(self) -> list[BadRow]:
        """Every row that can't be used."""
        return [row for file in self.files for row in file.bad]

    def to_json(self) -> dict[str, Any]:
        """All counts and named rows as JSON takes them; of duplicates and overlap, 100 rows are named."""
        return {
            "files": [file.to_json() for file in self.files],
            "rows": self.rows,
            "records": len(self.records),
            "bad_rows": [_bad_json(row) for row in self.bad_rows],
            "left_out": sum(file.left_out for file in self.files),
            "repeated": sum(file.taken + file.left_out + file.to_valid - file.good for file in self.files),
            "duplicates": self.duplicates,
            "duplicate_rows": self.duplicate_rows[:100],
            "overlap": self.overlap,
            "overlap_rows": self.overlap_rows[:100],
        }


def load(
    files: Sequence[DataFile], info: str | None = None, *, bad_rows: str = "error", seed: int = 42
) -> Dataset:
    """The records of some files (or entries of a dataset_info.json), weighted.

    Raises one DataError that lists the faults of all files, and every bad row unless `bad_rows` is "drop".
    """
    loaded = _load(files, info, bad_rows, seed)
    return _dataset(loaded, [part.counts for part in loaded])


def load_data(settings: DataSettings, seed: int) -> tuple[Dataset, Dataset | None]:
    """The training and validation rows of a job.

    A share is drawn (seeded) from the training rows before they are repeated by weight; equal rows stay on
    one side. Validation files are compared with the training rows, and rows that are in both are named.
    """
    loaded = _load(settings.train, settings.info, settings.bad_rows, seed)
    counts = [part.counts for part in loaded]
    if settings.valid is None:
        return _dataset(loaded, counts), None
    if isinstance(settings.valid, float):
        return _share_out(loaded, settings.valid, seed)
    train = _dataset(loaded, counts)
    valid = load(settings.valid, settings.info, bad_rows=settings.bad_rows, seed=seed)
    _name_overlap(train, valid)
    return train, valid


def survey(files: Sequence[str], info: str | None = None) -> tuple[Dataset, list[DataError]]:
    """What can be said about files without stopping at a fault: their rows, good and bad, and the errors."""
    loaded, problems = _read_all([DataFile(path=path, weight=1.0) for path in files], info, 42)
    return _dataset(loaded, [part.counts for part in loaded]), problems


@dataclass
class _Loaded:
    """A file's good rows and how often each is taken."""

    summary: FileSummary
    records: list[Record]
    counts: list[int]


def _load(files: Sequence[DataFile], info: str | None, bad_rows: str, seed: int) -> list[_Loaded]:
    loaded, problems = _read_all(files, info, seed)
    bad = [row for part in loaded for row in part.summary.bad]
    rows = sum(part.summary.rows for part in loaded)
    if bad_rows == "error" and bad:
        problems.append(
            DataError(
                f"{len(bad)} of {rows} rows can't be used.",
                details=[str(row) for row in bad],
                fix="Correct them, or leave them out (counted and listed) with data.bad_rows=drop.",
            )
        )
    else:
        for part in loaded:
            if not part.records:
                problems.append(
                    DataError(
                        f"None of the {part.summary.rows} rows of {part.summary.path} can be used.",
                        details=[str(row) for row in part.summary.bad],
                        fix="`tunesmith data check` shows what a file holds.",
                    )
                )
    if problems:
        raise joined(problems)
    return loaded


def _read_all(
    files: Sequence[DataFile], info: str | None, seed: int
) -> tuple[list[_Loaded], list[DataError]]:
    loaded: list[_Loaded] = []
    problems: list[DataError] = []
    for index, file in enumerate(files):
        try:
            known = resolve(Path(info), file.path) if info else named(file.path)
            paths = known.paths if known else files_of(file.path)
        except DataError as error:
            problems.append(error)
            continue
        parts = []
        for path in paths:
            try:
                parts.append(_read(path, known.format if known else None))
            except DataError as error:
                problems.append(error)
        if parts and not known:
            parts[0].summary.not_read = not_read(file.path)
        try:
            # Random numbers of its own for each entry: what one draws doesn't hang on the others.
            _weigh(parts, file, known.num_samples if known else None, random.Random(f"{seed}/{index}"))
        except DataError as error:
            problems.append(error)
        loaded += parts
    return loaded, problems


def _read(path: str, format: Format | None) -> _Loaded:
    raw = read_file(path)
    if format is not None:
        check_columns(raw.rows, format)
    elif raw.rows:
        format = recognise(raw.rows)
    records: list[Record] = []
    bad = list(raw.bad)
    for row in raw.rows:
        try:
            assert format is not None
            records.append(parse(row, format))
        except RowError as error:
            bad.append(BadRow(row.origin, str(error)))
    bad.sort(key=lambda row: row.origin.row)
    summary = FileSummary(
        path,
        format.name if format else "unknown",
        format.reason if format else "unknown, because no row can be read",
        len(raw.rows) + len(raw.bad),
        bad,
        raw.encoding,
        raw.kind,
        raw.sha256,
        unused_columns=not_used(raw.rows, format) if format else [],
    )
    return _Loaded(summary, records, [1] * len(records))


def _weigh(parts: Sequence[_Loaded], file: DataFile, num_samples: int | None, draw: random.Random) -> None:
    """How often each good row is taken: drawn to num_samples first, then repeated or thinned by weight."""
    places = [(part, at) for part in parts for at in range(len(part.records))]
    taken = list(range(len(places)))
    if num_samples is not None and places:
        # More than there are: all of them, and the rest drawn again, as LLaMA-Factory does.
        more = max(0, num_samples - len(places))
        taken = sorted(draw.sample(taken, min(num_samples, len(places))) + draw.choices(taken, k=more))
    whole, part_of_one = divmod(file.weight, 1)
    extra = draw.sample(range(len(taken)), round(part_of_one * len(taken)))
    for part in parts:
        part.summary.weight = file.weight
        part.counts = [0] * len(part.records)
    for n in (int(whole) * [*range(len(taken))]) + extra:
        part, at = places[taken[n]]
        part.counts[at] += 1
    if places and not any(any(part.counts) for part in parts):
        raise DataError(
            f"{file.path}: weight {file.weight:g} leaves none of its {len(places)} rows.",
            fix="Give a larger weight, or leave the file out.",
        )


def _dataset(loaded: Sequence[_Loaded], counts: Sequence[Sequence[int]]) -> Dataset:
    records: list[Record] = []
    files = []
    for part, times in zip(loaded, counts, strict=True):
        # Whole passes, not each row twice in a row: a file of weight 2 is laid in twice.
        for turn in range(max(times, default=0)):
            records += [record for record, n in zip(part.records, times, strict=True) if n > turn]
        once = [record for record, n in zip(part.records, times, strict=True) if n]
        files.append(
            replace(
                part.summary,
                taken=sum(times),
                left_out=len(part.records) - len(once),
                turns=sum(len(_turns(record)) for record in once),
                characters=sum(len(text) for record in once for text in _texts(record)),
            )
        )
    first: dict[bytes, Record] = {}
    repeats = []
    for part, times in zip(loaded, counts, strict=True):
        for record in (record for record, n in zip(part.records, times, strict=True) if n):
            earlier = first.setdefault(content_key(record), record)
            if earlier is not record:
                repeats.append(f"{_origin(record)} repeats {_origin(earlier)}")
    return Dataset(records, files, len(repeats), repeats)


def _share_out(loaded: Sequence[_Loaded], share: float, seed: int) -> tuple[Dataset, Dataset]:
    moved = _draw_share(loaded, share, seed)
    kept = [
        [0 if moves else n for n, moves in zip(part.counts, of_part, strict=True)]
        for part, of_part in zip(loaded, moved, strict=True)
    ]
    train, valid = _dataset(loaded, kept), _dataset(loaded, moved)
    for file, of_valid in zip(train.files, valid.files, strict=True):
        file.to_valid = of_valid.taken
        file.left_out -= of_valid.taken
        # Bad rows and rows left out are listed once, with the training rows.
        of_valid.rows, of_valid.bad, of_valid.left_out = of_valid.taken, [], 0
    return train, valid


def _draw_share(loaded: Sequence[_Loaded], share: float, seed: int) -> list[list[int]]:
    """1 for each row that goes to the validation rows. Rows of equal content go together."""
    groups: dict[bytes, list[tuple[int, int]]] = {}
    for index, part in enumerate(loaded):
        for at, record in enumerate(part.records):
            if part.counts[at]:
                groups.setdefault(content_key(record), []).append((index, at))
    rows = sum(map(len, groups.values()))
    if len(groups) < 2:
        raise DataError(
            f"{counted(rows, 'row')} can't be shared between training and validation"
            + (": all are the same." if rows > 1 else "."),
            fix="Name a file in data.valid, or train without validation: data.valid=null. "
            "A text file is one row, however long.",
        )
    order = list(groups.values())
    random.Random(f"{seed}/valid").shuffle(order)
    order.sort(key=len)  # stable: single rows first, so that a large group doesn't swallow the share
    wanted, moved = max(1, round(share * rows)), [[0] * len(part.records) for part in loaded]
    count = 0
    for group in order[:-1]:
        if count and count + len(group) > wanted:
            break
        count += len(group)
        for index, at in group:
            moved[index][at] = 1
    return moved


def _name_overlap(train: Dataset, valid: Dataset) -> None:
    seen = {content_key(record): record for record in reversed(train.records)}
    once = {_origin(record): record for record in valid.records}
    for record in once.values():
        if (twin := seen.get(content_key(record))) is not None:
            valid.overlap_rows.append(f"{_origin(record)} is also in training: {_origin(twin)}")
    valid.overlap = len(valid.overlap_rows)


def content_key(record: Record) -> bytes:
    """A key (16 bytes) of what a record says, whatever its place, id and train marks."""
    # Names and ids only where a turn has them: keys of older runs stay what they were.
    turns = [
        [turn.role, turn.content, list(turn.tool_calls), *filter(any, [(turn.name, turn.tool_call_id)])]
        for turn in _turns(record)
    ]
    tools = record.tools if isinstance(record, Conversation) else ()
    what: list[Any] = [
        type(record).__name__,
        turns,
        list(tools),
        record.text if isinstance(record, Text) else "",
    ]
    if isinstance(record, Labelled):
        what.append(record.label)
    text = json.dumps(what, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


def _turns(record: Record) -> tuple[Message, ...]:
    if isinstance(record, Conversation):
        return record.messages
    if isinstance(record, Labelled):
        return record.conversation.messages
    return (*record.prompt, *record.chosen, *record.rejected) if isinstance(record, Preference) else ()


def _texts(record: Record) -> Iterator[str]:
    if isinstance(record, Text):
        yield record.text
    yield from (turn.content for turn in _turns(record))


def _origin(record: Record) -> Origin:
    return record.conversation.origin if isinstance(record, Labelled) else record.origin


def _bad_json(row: BadRow) -> dict[str, Any]:
    return {"origin": str(row.origin), "line": row.origin.line, "row": row.origin.row, "reason": row.reason}
