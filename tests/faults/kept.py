"""Outcomes of rows on disk as they come: hours of work outlive a stop, and rows can be run in several goes.

Each says which state of the package it's of; those of another state don't count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tests.faults.tally import Outcome, Row, Tally


def state_of(package: Path) -> str:
    """A hash of all code of the package in this folder and of the matrix."""
    digest = hashlib.sha256()
    for part in ("tunesmith", "tests/faults"):
        for file in sorted((package / part).rglob("*")):
            if file.suffix in (".py", ".cpp", ".c", ".h"):
                digest.update(str(file.relative_to(package)).encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def keep(folder: Path, state: str, outcome: Outcome) -> None:
    """Write a row's outcome, over an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    tally = outcome.tally
    content = {
        "state": state,
        "seconds": outcome.seconds,
        "injected": tally.injected,
        "survived": tally.survived,
        "lost": tally.lost,
        "notes": tally.notes,
    }
    (folder / f"{outcome.row.name}.json").write_text(json.dumps(content), encoding="utf-8")


def kept(folder: Path, state: str, rows: Sequence[Row]) -> list[Outcome]:
    """Outcomes of this state, in the rows' order."""
    found = []
    for row in rows:
        file = folder / f"{row.name}.json"
        if not file.exists():
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["state"] == state:
            tally = Tally(content["injected"], content["survived"], content["lost"], content["notes"])
            found.append(Outcome(row, tally, content["seconds"]))
    return found
