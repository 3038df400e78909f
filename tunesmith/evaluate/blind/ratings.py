"""What raters said: a JSON line a choice, appended as it comes and on the disk before it is acknowledged.

    {"rater": "李雷", "session": "", "item": "5f0c…", "choice": "left" | "right" | "tie" | null, "at": "…"}

null takes a choice back. Of several lines of a rater on an item the last one counts. `session` tells two
people of one name apart whose answers came as files; on the local page a name is a person. `late` marks what
came after the unsealing.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith import locks
from tunesmith.disk import disk_errors
from tunesmith.errors import DataError, RunError
from tunesmith.evaluate.blind.folder import BlindTest
from tunesmith.rundir import read_jsonl

CHOICES = ("left", "right", "tie")
RATINGS_KIND = "tunesmith blind ratings"
LONGEST_NAME = 60
LOCK_SECONDS = 10.0


class Unsealed(RunError):
    """A rating came after the report."""


@dataclass
class Rater:
    """A person's choices by item, as they count now; `late` ones came after the unsealing."""

    name: str
    session: str = ""
    choices: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)


def rater_name(text: str) -> str:
    """A name as it is kept: composed characters, single spaces. Raises DataError for one that is no name."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 0 < len(name) <= LONGEST_NAME or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise DataError(
            f"{name[:LONGEST_NAME]!r} isn't a name.", fix=f"Give one of 1 to {LONGEST_NAME} characters."
        )
    return name


def append(test: BlindTest, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append choices; when this returns they are on the disk. Raises Unsealed once the report was made."""
    with locked(test.ratings_file):
        if at := test.unsealed():
            raise Unsealed(
                f"The test was unsealed at {at}; ratings are closed.", fix="Make a new test to go on."
            )
        _write(test.ratings_file, lines)


def take_in(test: BlindTest, files: Sequence[Path]) -> None:
    """Append the ratings of files that raters sent. After the unsealing they are marked as late.

    A file that was taken in before adds nothing; a newer one of the same rater adds what changed. Raises one
    DataError that names everything that is wrong with any file, before anything is written.
    """
    known = {item["id"] for item in test.public()["items"]}
    sent, problems = [], []
    for file in files:
        try:
            sent += _read_sent(file, test.public()["test"], known)
        except DataError as error:
            problems += [error.what, *error.details]
    if problems:
        raise DataError(
            "Some files don't hold ratings of this test; nothing was taken in.",
            details=problems,
            fix="Give the files that the page of this test saved.",
        )
    with locked(test.ratings_file):
        late = test.unsealed() is not None
        now = {(r.name, r.session): {**r.late, **r.choices} for r in read_raters(test)}
        new = []
        for line in sent:
            before = now.setdefault((line["rater"], line["session"]), {})
            if before.get(line["item"]) != line["choice"]:
                before[line["item"]] = line["choice"]
                new.append({**line, "received": timestamp(), **({"late": True} if late else {})})
        if new:
            _write(test.ratings_file, new)


def read_raters(test: BlindTest) -> list[Rater]:
    """Every rater with the choices that count, in the order in which they began."""
    raters: dict[tuple[str, str], Rater] = {}
    for line in read_jsonl(test.ratings_file):
        name, session = str(line.get("rater")), str(line.get("session") or "")
        rater = raters.setdefault((name, session), Rater(name, session))
        choices = rater.late if line.get("late") else rater.choices
        if line.get("choice") in CHOICES:
            choices[str(line["item"])] = str(line["choice"])
        else:
            choices.pop(str(line.get("item")), None)
    return [rater for rater in raters.values() if rater.choices or rater.late]


def timestamp() -> str:
    """Now, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a file against other processes and threads; it is made if it isn't there."""
    with disk_errors(file):
        new = not file.exists()
        handle = file.open("a", encoding="utf-8")
    with handle:
        if new:
            _sync_folder(file.parent)
        if not locks.hold(handle, LOCK_SECONDS):
            raise RunError(f"{file} is held by another process.", fix="Wait until it has ended.")
        yield


def _write(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with disk_errors(file), file.open("rb+") as handle:
        # What a process that was killed wrote of a line was never acknowledged.
        content = handle.read()
        whole = content.rfind(b"\n") + 1
        handle.truncate(whole)
        handle.seek(whole)
        try:
            handle.write(text.encode())
            handle.flush()
            os.fsync(handle.fileno())
        except OSError:
            os.ftruncate(handle.fileno(), whole)
            raise


def _read_sent(file: Path, test: str, known: set[str]) -> list[dict[str, Any]]:
    """The choices in a file that the page saved. Raises DataError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"There is no file {file}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} can't be read: {error}.") from None
    if not isinstance(content, dict) or content.get("kind") != RATINGS_KIND:
        raise DataError(f"{file} isn't a file that the page of a blind test saved.")
    if content.get("test") != test:
        raise DataError(f"{file} holds ratings of another blind test.")
    name = rater_name(str(content.get("rater") or ""))
    lines, problems = [], []
    for number, rating in enumerate(content.get("ratings") or [], 1):
        found = rating if isinstance(rating, dict) else {}
        if found.get("item") not in known or found.get("choice") not in CHOICES:
            problems.append(f"{file}, rating {number}: it names no item or no choice of this test")
            continue
        at = str(found.get("at") or "")[:40]
        who = {"rater": name, "session": str(content.get("session") or "file")[:40]}
        lines.append({**who, "item": found["item"], "choice": found["choice"], "at": at})
    if problems:
        raise DataError(problems[0], details=problems[1:])
    return lines


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
