"""How far a judge agrees with people: its verdicts beside the votes of a blind test of the same answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.blind.folder import open_test
from tunesmith.evaluate.blind.tally import majority
from tunesmith.evaluate.votes import cohen_kappa

_OTHER = {"a": "b", "b": "a", "tie": "tie"}


Said = Mapping[tuple[str, str, str], str | None]
"""What most people said of a prompt and two answers, by these three texts; either answer may be first."""


def check_rated(folder: Path, rows: Sequence[tuple[str, str, str]], limit: int | None) -> None:
    """Raise DataError where people rated none of these rows (prompt, answer of A, answer of B)."""
    said = _votes(folder)
    if any(_key(*row) in said for row in rows):
        return
    prompts = {prompt for prompt, _, _ in said}
    if limit is not None and not any(prompt.strip() in prompts for prompt, _, _ in rows):
        raise DataError(
            f"With --limit {limit} none of the rows was rated in {folder}: it takes the first rows, and "
            "raters had others.",
            fix="Leave --limit out, or raise it.",
        )
    raise DataError(
        f"None of these answers were rated in {folder}.",
        fix="Give the blind test of the same two files of answers.",
    )


def agreement(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cohen's kappa of the judge and most people, over the rows that both judged, with the same two answers.

    Sides may be the other way round in the blind test.
    """
    said = _votes(folder)
    votes = [said.get(_key(row["prompt"], row["a"], row["b"])) for row in rows]
    both = [
        (str(row["verdict"]), vote)
        for row, vote in zip(rows, votes, strict=True)
        if row["verdict"] is not None and vote is not None
    ]
    same = sum(judge == people for judge, people in both)
    return {"folder": str(folder), "n": len(both), "same": same, "cohen_kappa": cohen_kappa(both)}


def _votes(folder: Path) -> Said:
    report = json.loads(open_test(folder).figures_file.read_text(encoding="utf-8"))
    said: dict[tuple[str, str, str], str | None] = {}
    for row in report["rows"]:
        vote = majority(list(row["votes"].values()))
        said[_key(row["prompt"], row["a"], row["b"])] = vote
        said[_key(row["prompt"], row["b"], row["a"])] = _OTHER[vote] if vote else None
    return said


def _key(prompt: str, a: str, b: str) -> tuple[str, str, str]:
    return prompt.strip(), a.strip(), b.strip()
