"""Every call to a model, in SQLite beside the output: what was asked, what came, what it took.

A call is told by its key: the sha256 of the model's facts (name, weights, settings) and the messages. What
has come once isn't asked again, however the process ended: each batch of replies is one transaction, handed
to the system at once, so that a kill loses none. It is forced onto the disk once a second: a power failure
loses as much. A call that failed is kept too, and is asked again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.disk import disk_errors
from tunesmith.errors import RunError
from tunesmith.failpoints import reach
from tunesmith.records import Completion, Conversation, Message, Origin

FORMAT = 1
SYNC_SECONDS = 1.0
APPLICATION = 0x54534D4B  # "TSMK", by which `file` and we know it
_TABLE = """
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL,            -- sha256 of model, settings and messages
    purpose TEXT NOT NULL,        -- make, make again, judge, judge again
    chunk TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,         -- the prompt's name and version
    request TEXT NOT NULL,        -- the messages, JSON
    reply TEXT NOT NULL,
    finish TEXT NOT NULL,         -- stop, length, error
    error TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS calls_by_key ON calls (key);
CREATE TABLE IF NOT EXISTS written (sha256 TEXT PRIMARY KEY);  -- contents of row files of ours
"""


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked: of a chunk, by a prompt, for a purpose."""

    purpose: str
    chunk: str
    prompt: str
    messages: tuple[Message, ...]

    def key(self, facts: Mapping[str, Any]) -> str:
        """What tells this call to this model from every other."""
        asked = [message.as_dict() for message in self.messages]
        whole = json.dumps([facts, asked], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()

    def conversation(self, at: int) -> Conversation:
        """The same for a Completer."""
        return Conversation(self.messages, Origin(self.purpose, at + 1, at))


@dataclass(frozen=True, slots=True)
class Reply:
    """What came: a text, or why there is none."""

    text: str
    finish: str
    error: str = ""

    def __post_init__(self) -> None:
        """A reply is the same when it comes and when it is read again."""
        object.__setattr__(self, "text", _sayable(self.text))


@dataclass(frozen=True, slots=True)
class Sum:
    """All calls of one purpose to one model."""

    purpose: str
    model: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Ledger:
    """The file of calls. One process at a time: the output's lock is held."""

    def __init__(self, file: Path) -> None:
        """Raises RunError for a file that is something else, or damaged."""
        self.file, self._synced = file, time.monotonic()
        with _errors(self.file):
            self._base = sqlite3.connect(file, isolation_level=None)
            there = self._base.execute("PRAGMA application_id").fetchone()[0]
            tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            format_ = self._base.execute("PRAGMA user_version").fetchone()[0]
            if tables and (there != APPLICATION or format_ != FORMAT):
                self._base.close()
                raise _not_ours(file, there, format_)
            self._base.execute("PRAGMA journal_mode = WAL")  # or, where that can't be, as it was
            self._base.execute("PRAGMA synchronous = NORMAL")
            self._base.execute(f"PRAGMA application_id = {APPLICATION}")
            self._base.execute(f"PRAGMA user_version = {FORMAT}")
            self._base.executescript(_TABLE)

    def close(self) -> None:
        """Let go of the file; one in which nothing stands goes. The output's lock is still held."""
        tables = ("calls", "written")
        empty = not any(self._base.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in tables)
        self._base.close()
        if empty:
            self.file.unlink(missing_ok=True)

    def found(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there, by key; failed calls aren't any."""
        replies = {}
        with _errors(self.file):
            for key in dict.fromkeys(keys):
                row = self._base.execute(
                    "SELECT reply, finish FROM calls WHERE key = ? AND finish != 'error' "
                    "ORDER BY number LIMIT 1",
                    (key,),
                ).fetchone()
                if row:
                    replies[key] = Reply(*row)
        return replies

    def add(self, facts: Mapping[str, Any], came: Sequence[tuple[Call, Completion]]) -> None:
        """Keep what came together: all of it or, on a full disk, none. Raises RunError."""
        rows = [
            (
                call.key(facts), call.purpose, call.chunk, str(facts["model"]), call.prompt,
                _sayable(json.dumps([message.as_dict() for message in call.messages], ensure_ascii=False)),
                _sayable(one.text), one.finish, _sayable(one.error), one.prompt_tokens,
                one.completion_tokens, round(one.seconds, 4),
            )
            for call, one in came
        ]  # fmt: skip
        with _errors(self.file):
            reach("ledger.add")
            self._base.execute("BEGIN IMMEDIATE")
            try:
                self._base.executemany(
                    "INSERT INTO calls (key, purpose, chunk, model, prompt, request, reply, finish, error, "
                    "prompt_tokens, completion_tokens, seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
            reach("ledger.added")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._base.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._synced = time.monotonic()

    def sums(self) -> list[Sum]:
        """What all calls so far took, by purpose and model."""
        with _errors(self.file):
            return _sums(self._base)

    def written(self, sha256: str) -> bool:
        """Whether a file of this content was written here, and so may be replaced."""
        with _errors(self.file):
            row = self._base.execute("SELECT 1 FROM written WHERE sha256 = ?", (sha256,)).fetchone()
        return row is not None

    def will_write(self, sha256s: Sequence[str]) -> None:
        """Remember contents before their files are written."""
        with _errors(self.file):
            self._base.executemany("INSERT OR IGNORE INTO written VALUES (?)", [(one,) for one in sha256s])


def file_of(output: Path) -> Path:
    """Where an output's calls are kept."""
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.calls.sqlite")


def read_sums(output: Path) -> list[Sum]:
    """What the calls of an output took; [] where there are none. Another process may be adding calls.

    Raises RunError for a file that is something else, or damaged.
    """
    file = file_of(output)
    if not file.is_file():
        return []
    with _errors(file), closing(_opened_to_read(file)) as base:
        there, format_ = (base.execute(f"PRAGMA {name}").fetchone()[0] for name in _STAMPS)
        tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
        if tables and (there != APPLICATION or format_ != FORMAT):
            raise _not_ours(file, there, format_)
        return _sums(base) if "calls" in tables else []  # a make that begins at this moment has none yet


_STAMPS = ("application_id", "user_version")


def _opened_to_read(file: Path) -> sqlite3.Connection:
    # A file without a log beside it is whole by itself; SQLite would make one, to read it.
    logged = file.with_name(f"{file.name}-wal").exists()
    how = "mode=ro" if logged else "mode=ro&immutable=1"
    return sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True, isolation_level=None)


def _sums(base: sqlite3.Connection) -> list[Sum]:
    rows = base.execute(
        "SELECT purpose, model, count(*), sum(finish = 'error'), sum(prompt_tokens), "
        "sum(completion_tokens), round(sum(seconds), 3) FROM calls "
        "GROUP BY purpose, model ORDER BY min(number)"
    ).fetchall()
    return [Sum(*row) for row in rows]


def _not_ours(file: Path, application: int, version: int) -> RunError:
    if application != APPLICATION:
        return RunError(f"{file} is there already, and is something else.", fix="Give another output.")
    return RunError(
        f"{file} is of format {version}, and this version of tunesmith reads format {FORMAT}.",
        fix="Go on with the version that wrote it, or give another output.",
    )


def _sayable(text: str) -> str:
    """A text without halves of surrogate pairs, which no file takes: each is a question mark."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    try:
        with disk_errors(file):
            yield
    except sqlite3.Error as error:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        what = "read: it is damaged or something else" if damaged else "used"
        raise RunError(
            f"{file} can't be {what} ({error}).",
            fix="Take it away to begin anew; calls that it holds are then made again."
            if damaged
            else "Free some space, or give an output on another disk; the same command goes on.",
        ) from None
