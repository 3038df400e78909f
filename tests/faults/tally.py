"""What a row of the fault matrix counts, and the table of all rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.warm import Warm
from tunesmith.errors import TunesmithError


@dataclass
class Tally:
    """Faults injected, those survived as the row demands, and a line on each that wasn't."""

    injected: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """One injection; what goes wrong inside says what was lost."""
        self.injected += 1
        try:
            yield
            self.survived += 1
        except (AssertionError, TunesmithError) as error:
            self.lost.append(f"{what}: {' '.join(str(error).split())[:200] or 'lost'}")

    @property
    def held(self) -> bool:
        return self.injected > 0 and self.survived == self.injected and not self.lost


@dataclass
class Place:
    """What rows work with: a folder to write in, the process that forks others, and how much is asked."""

    folder: Path
    warm: Warm
    full: bool
    every: int = 1  # of the cases of long rows: 1 takes them all

    def many(self, full: int, quick: int) -> int:
        """How many faults: the figure of the matrix, or that of the quick subset."""
        return full if self.full else quick

    def new(self, name: str) -> Path:
        """A folder of this name that isn't there yet."""
        numbered = self.folder / name
        number = 1
        while numbered.exists():
            number += 1
            numbered = self.folder / f"{name}-{number}"
        numbered.mkdir(parents=True)
        return numbered


@dataclass(frozen=True)
class Row:
    """A row of the matrix: what is injected, and what must hold."""

    name: str
    injection: str
    holds: str
    run: Callable[[Place], Tally]


@dataclass(frozen=True)
class Outcome:
    """A row's count, and how long it took."""

    row: Row
    tally: Tally
    seconds: float


def count(row: Row, place: Place) -> Outcome:
    """Run a row."""
    begun = time.monotonic()
    tally = row.run(place)
    return Outcome(row, tally, time.monotonic() - begun)


def markdown(outcomes: list[Outcome]) -> str:
    """The table, and below it what the notes say."""
    lines = [
        "| injection | must hold | injected | survived | lost | seconds |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for each in outcomes:
        tally = each.tally
        figures = (tally.injected, tally.survived, tally.injected - tally.survived, round(each.seconds))
        numbers = " | ".join(f"{figure:,}" for figure in figures)
        lines.append(f"| {each.row.injection} | {each.row.holds} | {numbers} |")
    notes = [f"- {each.row.injection}: {note}" for each in outcomes for note in each.tally.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"
