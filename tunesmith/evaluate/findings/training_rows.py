"""The rows that a run has learnt from, read again from the files of its job.

A row counts only if its key stands in the run's trained-rows.txt: files may have changed since. Where a run
goes on with another one's adapter, that one's rows are among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.check import load_data
from tunesmith.data.trained_rows import row_key, trained_rows
from tunesmith.records import Conversation, Labelled, Message, Preference, Record, Text
from tunesmith.rundir import RunDir, is_run
from tunesmith.train.config import load_job


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One reply that was trained on, with what was asked; of a plain text, a paragraph is both."""

    origin: str
    question: str
    answer: str


@dataclass(frozen=True)
class TrainingRows:
    """The replies, and how many of the rows that were learnt from are no longer in the files."""

    replies: list[TrainingRow]
    rows: int
    gone: int


def read_training_rows(run: RunDir) -> TrainingRows:
    """The rows of a run. Raises DataError or SettingsError where the files of its job can't be read."""
    keys = trained_rows(run.path)
    found: dict[str, Record] = {}
    for each in _with_earlier(run):
        job = load_job(each.job_file)
        train, _ = load_data(job.data, job.train.seed)
        for record in train.records:
            key = row_key(record)
            if not keys or key in keys:
                found.setdefault(key, record)
    replies = [reply for record in found.values() for reply in _replies(record)]
    return TrainingRows(replies, len(found), max(0, len(keys) - len(found)))


def _with_earlier(run: RunDir) -> Iterator[RunDir]:
    """The run, then those that it goes on with."""
    seen: set[Path] = set()
    while run.path.resolve() not in seen:
        seen.add(run.path.resolve())
        yield run
        earlier = load_job(run.job_file).adapter.continue_from
        if not earlier:
            return
        folder = Path(earlier).expanduser()
        named = next((RunDir(path) for path in (folder, folder.parent) if is_run(path)), None)
        if named is None:
            return
        run = named


def _replies(record: Record) -> Iterator[TrainingRow]:
    if isinstance(record, Text):
        # A book is one row: what it says about something stands in a paragraph.
        yield from (TrainingRow(str(record.origin), line, line) for line in record.text.splitlines() if line)
        return
    turns: tuple[Message, ...]
    if isinstance(record, Preference):
        turns, origin = (*record.prompt, *record.chosen), record.origin
    else:
        talk: Conversation = record.conversation if isinstance(record, Labelled) else record
        turns, origin = talk.messages, talk.origin
    asked = ""
    for turn in turns:
        if turn.role == "user":
            asked = turn.content
        elif turn.role == "assistant" and turn.content.strip() and turn.train is not False:
            yield TrainingRow(str(origin), asked, turn.content)
