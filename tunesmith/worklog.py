"""Outputs that grow row by row, outlive a kill at any instant, and are continued by the same work only.

    OUTPUT            whole or not there: it takes its name when the last row is in
    OUTPUT.partial    a worklog: what makes the rows, then each row as it's finished, in that order
    .OUTPUT.lock      held, and there, while a process works on OUTPUT

Rows come in groups: what one pass of a model finished. A group is in the worklog or isn't, so that the work
left over falls into the same passes as without an interruption, and rounds the same. Lines are handed to the
system at once: a kill loses no group. They are forced onto the disk once a second: a power failure loses as
much.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

from tunesmith import locks
from tunesmith.disk import disk_errors, write_atomic
from tunesmith.errors import RunError
from tunesmith.failpoints import reach

LOCK_SECONDS = 0.5
SYNC_SECONDS = 1.0
FORMAT = 1

Row = Mapping[str, Any]


@contextmanager
def claim(output: Path, again: str) -> Iterator[Claim]:
    """Hold `output` against a second process while rows are made for it.

    At a good end the worklogs that were opened go, unless one has rows that are to be asked again
    (`unfinished`); otherwise those with rows stay, and who pressed Ctrl-C is told so, with `again`: how to go
    on. Raises RunError if another process works on `output`, or nothing can be written there.
    """
    with disk_errors(output):
        made = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        lock, file = _locked(output)
        _sweep(output)
    held = Claim(output)
    try:
        yield held
        if not any(worklog.unfinished for worklog in held.worklogs):
            for worklog in held.worklogs:
                worklog.remove()
    except KeyboardInterrupt:
        kept = [worklog for worklog in held.worklogs if not worklog.empty]
        if not kept:
            raise
        told = "; ".join(f"{worklog.size()} in {worklog.file}" for worklog in kept)
        raise KeyboardInterrupt(f"Interrupted. What is done is kept: {told}.\n{again}") from None
    finally:
        for worklog in held.worklogs:
            worklog.close()
        file.unlink(missing_ok=True)
        lock.close()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@dataclass
class Claim:
    """An output that this process alone works on, and its worklogs."""

    output: Path
    worklogs: list[Worklog] = field(default_factory=list)

    def worklog(self, facts: Mapping[str, Any], rows: int, *, part: str = "") -> tuple[Worklog, str]:
        """The worklog of this very work, begun or continued, and a sentence on one that is of other work.

        `facts` (JSON) are all that decides what the rows hold; `rows` is how many there will be. Worklogs of
        other facts stay: this one is then OUTPUT.partial-2, and so on.
        """
        changed = ""
        for begun in begun_for(self.output, part):
            if not (changes := differences(begun.facts, facts)):
                return self._open(begun.file, facts, rows, begun), ""
            changed = changed or (
                f"{begun.file} holds {begun.size()} that were begun otherwise ({'; '.join(changes)}). "
                "It stays there; this begins anew."
            )
        free = (file for file in _numbered(self.output, part) if not file.exists() or _is_empty(file))
        return self._open(next(free), facts, rows, None), changed

    def only_worklog(self, facts: Mapping[str, Any], rows: int, *, fresh: bool = False) -> Worklog:
        """OUTPUT.partial, continued or begun; `fresh`: begun anew. Raises RunError if it's of other work."""
        file = next(_numbered(self.output, ""))
        begun = read(file)
        if begun is None and file.exists():
            raise RunError(f"{file} is there already, and is something else.", fix="Give another output.")
        if begun is not None and not fresh and (changes := differences(begun.facts, facts)):
            raise RunError(
                f"{file} can't be continued: it was begun otherwise.",
                details=changes,
                fix="Give the model, settings and rows that it was begun with, --force to begin anew, "
                "or another output.",
            )
        return self._open(file, facts, rows, None if fresh else begun)

    def _open(self, file: Path, facts: Mapping[str, Any], rows: int, begun: Worklog | None) -> Worklog:
        if begun is None or begun.empty:
            write_atomic(file, _line({"worklog": FORMAT, "rows": rows, "facts": facts}))
            begun = read(file)
            assert begun is not None
        begun.open()
        self.worklogs.append(begun)
        return begun


@dataclass
class Worklog:
    """Rows that are done, by kind and by their number from 0; `total` is how many there will be of each.

    `unfinished`: some of them failed, and the same work goes on with these.
    """

    file: Path
    facts: dict[str, Any]
    total: int
    groups: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    length: int = 0  # bytes of whole groups
    unfinished: bool = False
    _handle: IO[bytes] | None = None
    _synced: float = 0.0

    @property
    def empty(self) -> bool:
        """Whether no row is done."""
        return not any(self.groups.values())

    def rows(self, kind: str) -> dict[int, dict[str, Any]]:
        """The rows of a kind (`answers`), by number."""
        return self.groups.get(kind, {})

    def size(self) -> str:
        """`120 of 300 answers`; those that failed aren't any."""
        kind, rows = next(reversed(self.groups.items()), ("rows", {}))
        count = sum(row.get("finish") != "error" for row in rows.values())
        return f"{count} of {self.total} {kind}"

    def append(self, kind: str, group: Mapping[int, Row]) -> None:
        """Add the rows that came together: all of them or, on a full disk, none. Raises RunError."""
        assert self._handle is not None
        last = len(group) - 1
        text = "".join(
            _line({"kind": kind, "at": at, "left": last - i, "row": row})
            for i, (at, row) in enumerate(group.items())
        )
        rest = text.encode("utf-8", errors="backslashreplace")
        number, after = self._handle.fileno(), self.length + len(rest)
        with disk_errors(self.file):
            try:
                reach("worklog.append")
                while rest:
                    rest = rest[os.write(number, rest) :]
            except BaseException:
                os.ftruncate(number, self.length)
                raise
            reach("worklog.appended")
            self.length = after
            self.groups.setdefault(kind, {}).update({at: dict(row) for at, row in group.items()})
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()

    def open(self) -> None:
        """Make it ready for more, without what was cut off in the middle."""
        with disk_errors(self.file):
            self._handle = self.file.open("ab", buffering=0)
            self._handle.truncate(self.length)

    def close(self) -> None:
        """Leave it for another time, or not at all where it holds nothing."""
        if self._handle is None:
            return
        with suppress(OSError):
            self._sync()
        self._handle.close()
        self._handle = None
        if self.empty:
            self.file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Its rows stand elsewhere now."""
        self.groups.clear()
        self.close()

    def _sync(self) -> None:
        assert self._handle is not None
        os.fsync(self._handle.fileno())
        self._synced = time.monotonic()


def read(file: Path) -> Worklog | None:
    """What a worklog holds, whole groups only; None where there is none, or something else.

    Raises RunError for one that is damaged before its end.
    """
    try:
        content = file.read_bytes()
        header = json.loads(content[: content.index(b"\n")])
        if header["worklog"] != FORMAT:
            return None
        worklog = Worklog(file, dict(header["facts"]), int(header["rows"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    # What a kill cut off has no end of line, and what a crash of the machine left may be zeros to the end.
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    at = len(lines[0]) + 1
    worklog.length = at
    group: dict[int, dict[str, Any]] = {}
    for number, text in enumerate(lines[1:], 2):
        at += len(text) + 1
        try:
            line = json.loads(text)
            group[int(line["at"])] = dict(line["row"])
            if line["left"] == 0:
                worklog.groups.setdefault(str(line["kind"]), {}).update(group)
                worklog.length, group = at, {}
        except (ValueError, LookupError, TypeError):
            raise RunError(
                f"{file}:{number}: the line is damaged.",
                fix="Restore the file, or take it away to begin anew.",
            ) from None
    return worklog


def check_free(output: Path) -> None:
    """Raise RunError if another process works on `output`, without waiting or leaving a trace."""
    if locks.is_held(_lock_file(output)):
        raise _in_use(output)


def begun_for(output: Path, part: str = "") -> list[Worklog]:
    """Worklogs with rows that interrupted work on `output` left, the first one first."""
    ours = re.compile(re.escape(f"{output.name}{part}.partial") + r"(?:-(\d+))?")
    files = output.parent.iterdir() if output.parent.is_dir() else ()
    numbers = {int(found[1] or 1): file for file in files if (found := ours.fullmatch(file.name))}
    worklogs = [read(file) for _, file in sorted(numbers.items())]
    return [worklog for worklog in worklogs if worklog is not None and not worklog.empty]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two sets of facts don't share: `settings.temperature 0.7 before, 0.9 now`."""
    old, new = dict(_flat(before)), dict(_flat(json.loads(json.dumps(now))))
    return [
        f"{name} {_shown(old, name)} before, {_shown(new, name)} now"
        for name in dict.fromkeys([*old, *new])
        if old.get(name, ...) != new.get(name, ...)
    ]


def write_lines(output: Path, lines: Iterable[Row]) -> None:
    """Write a JSONL file in one go: readers see the old one, the new one or none."""
    write_atomic(output, "".join(map(_line, lines)).encode("utf-8", "backslashreplace").decode())


def _line(content: Row) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _shown(facts: Mapping[str, Any], name: str) -> str:
    return json.dumps(facts[name], ensure_ascii=False) if name in facts else "not set"


def _numbered(output: Path, part: str) -> Iterator[Path]:
    """OUTPUT.partial, OUTPUT.partial-2, …"""
    for number in count(1):
        yield output.with_name(f"{output.name}{part}.partial{'' if number == 1 else f'-{number}'}")


def _is_empty(file: Path) -> bool:
    return (worklog := read(file)) is not None and worklog.empty


def _locked(output: Path) -> tuple[IO[str], Path]:
    """The lock of an output, held, and its file."""
    file = _lock_file(output)
    while True:
        handle = file.open("a")
        if not locks.hold(handle, LOCK_SECONDS):
            handle.close()
            raise _in_use(output)
        # Who held it before removes the file: a lock on a file without a name keeps nobody out.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), file.stat()):
                return handle, file
        handle.close()


def _lock_file(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def _in_use(output: Path) -> RunError:
    return RunError(
        f"{output} is being written by another process.", fix="Wait for it, or give another output."
    )


def _sweep(output: Path) -> None:
    """Remove the temporary files that a kill left of an output, its figures and its worklogs."""
    name = re.escape(output.name.removesuffix(".jsonl"))
    ours = re.compile(
        rf"\.{name}(\.jsonl?)?(\.(\w|\d+))?(\.general|\.own)?(\.partial(-\d+)?)?-[0-9a-f]{{12}}(\.[^.]+)?"
    )
    for file in output.parent.iterdir():
        if ours.fullmatch(file.name):
            file.unlink(missing_ok=True)
