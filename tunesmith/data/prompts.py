"""Rows to ask a model, and the answers they should give: for generate, eval and compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.dataset_info import check_columns, named
from tunesmith.data.formats import RowError, parse, recognise
from tunesmith.data.read import BadRow, RawFile, RawRow, files_of, read_file
from tunesmith.errors import DataError
from tunesmith.records import Conversation, Labelled, Message, Origin, Preference, Record, Text

# Where a row of references that isn't a conversation keeps its answer.
REFERENCES = ("references", "reference", "answer", "output", "completion", "response", "target", "text")


def read_prompts(path: str) -> list[Conversation]:
    """The prompts of a file or folder in any row format; a .txt or .md file is one prompt a line.

    FOLDER/NAME is an entry of FOLDER/dataset_info.json where there is no such file.

    A row's answer (its last assistant turn), if there, goes to `references` and out of `messages`; its
    columns as they stand in the file go to `meta["columns"]`. Raises one DataError that lists every bad row:
    a prompt left out would shift all answers after it.
    """
    prompts: list[Conversation] = []
    bad: list[BadRow] = []
    rows = 0
    entry = named(path)
    if entry and entry.num_samples is not None:
        raise DataError(
            f"{path} has num_samples in its dataset_info.json, which draws rows to train on; all are asked.",
            fix="Name the rows by an entry without num_samples.",
        )
    files = entry.paths if entry else files_of(path)
    for name in files:
        file = _lines_as_rows(read_file(name))
        rows += len(file.rows) + len(file.bad)
        bad += file.bad
        if entry:
            check_columns(file.rows, entry.format)
        format = entry.format if entry else recognise(file.rows, answers=False) if file.rows else None
        for row in file.rows:
            try:
                assert format is not None
                asked = _asked(parse(row, format, answers=False))
                columns = row.value if isinstance(row.value, dict) else {}
                prompts.append(replace(asked, meta={**asked.meta, "columns": columns}))
            except RowError as error:
                bad.append(BadRow(row.origin, str(error)))
    if bad:
        raise DataError(
            f"{len(bad)} of {rows} prompts can't be used.",
            details=[str(row) for row in bad],
            fix="Correct these rows.",
        )
    if len(files) > 1:
        # Each file's own numbers begin at 0: two rows would have one id, and draw the same by chance.
        return [replace(row, meta={**row.meta, "number": number}) for number, row in enumerate(prompts)]
    return prompts


def prompt_files(path: str) -> list[str]:
    """The files that `read_prompts` reads."""
    entry = named(path)
    return entry.paths if entry else files_of(path)


def read_references(path: str, prompts: Sequence[Conversation]) -> list[Conversation]:
    """The prompts with their true answers, which stand in a file of their own, one a row (or a line).

    A row may be a text, an object with `references`, `reference`, `answer`, `output`, …, or a conversation.
    They replace the answers of the prompts' own file. Raises DataError if there aren't as many as prompts.
    """
    references: list[tuple[str, ...]] = []
    bad: list[BadRow] = []
    for name in files_of(path):
        file = _lines_as_rows(read_file(name))
        bad += file.bad
        for row in file.rows:
            try:
                references.append(_truth(row))
            except RowError as error:
                bad.append(BadRow(row.origin, str(error)))
    if bad:
        raise DataError(
            f"{len(bad)} answers of {path} can't be read.",
            details=[str(row) for row in bad],
            fix="Correct these rows.",
        )
    if len(references) != len(prompts):
        raise DataError(
            f"{path} holds {len(references)} answers for {len(prompts)} prompts.",
            fix="There must be one for each prompt, in the same order, one a row; blank lines don't count.",
        )
    return [replace(prompt, references=truth) for prompt, truth in zip(prompts, references, strict=True)]


def prompts_sha256(rows: Sequence[Conversation]) -> str:
    """Of what these rows ask and of their references, in their order; a row's own answer isn't in it."""
    digest = hashlib.sha256()
    for row in rows:
        said = [message.as_dict() for message in row.prompt.messages]
        told = [row.key, said, [dict(tool) for tool in row.tools], row.references]
        digest.update(json.dumps(told, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _lines_as_rows(file: RawFile) -> RawFile:
    """A plain text file's lines, each with its number; other files as they are."""
    if file.kind not in ("txt", "md"):
        return file
    text = "".join(row.value for row in file.rows if isinstance(row.value, str))
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = [RawRow(line, Origin(file.path, number, at)) for at, (number, line) in enumerate(lines)]
    return replace(file, rows=rows)


def _asked(record: Record) -> Conversation:
    if isinstance(record, Text):
        return Conversation((Message("user", record.text),), record.origin, record.id)
    if isinstance(record, Preference):
        answer = record.chosen[-1].content if record.chosen else ""
        return Conversation(record.prompt, record.origin, record.id, references=(answer,) if answer else ())
    conversation = record.conversation if isinstance(record, Labelled) else record
    answer = conversation.answer or ""
    return replace(conversation.prompt, references=(answer,) if answer else ())


def _truth(row: RawRow) -> tuple[str, ...]:
    value = row.value
    if isinstance(value, str):
        return (value,)
    for column in REFERENCES:
        found = value.get(column)
        if isinstance(found, str) and found.strip():
            return (found,)
        if (
            isinstance(found, list)
            and found
            and all(isinstance(text, str) and text.strip() for text in found)
        ):
            return tuple(found)
        if found not in (None, "", []):
            raise RowError(f"{column!r} isn't an answer (a text)")
    try:
        answer = _asked(parse(row, recognise([row], answers=False), answers=False)).references
    except DataError:
        answer = ()
    if not answer:
        raise RowError(f"there is no answer (columns: {', '.join(value) or 'none'})")
    return answer
