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


def agreement(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cohen's kappa of the judge and most people, over the rows that both judged, with the same two answers.

    Sides may be the other way round in the blind test. Raises DataError where no answer is the same.
    """
    report = json.loads(open_test(folder).figures_file.read_text(encoding="utf-8"))
    said: dict[tuple[str, str, str], str | None] = {}
    for row in report["rows"]:
        vote = majority(list(row["votes"].values()))
        said[row["prompt"].strip(), row["a"].strip(), row["b"].strip()] = vote
        said[row["prompt"].strip(), row["b"].strip(), row["a"].strip()] = _OTHER[vote] if vote else None
    keys = [(row["prompt"].strip(), row["a"].strip(), row["b"].strip()) for row in rows]
    if not any(key in said for key in keys):
        raise DataError(
            f"None of these answers were rated in {folder}.",
            fix="Give the blind test of the same two files of answers.",
        )
    both = [
        (str(row["verdict"]), vote)
        for row, key in zip(rows, keys, strict=True)
        if row["verdict"] is not None and (vote := said.get(key)) is not None
    ]
    same = sum(judge == people for judge, people in both)
    return {"folder": str(folder), "n": len(both), "same": same, "cohen_kappa": cohen_kappa(both)}
