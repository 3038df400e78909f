"""Rows of a judgement as those of a comparison or an evaluation, so that reports show them alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFERRED = "preferred"


def as_compared(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line with its answers under `a` and `b`, or one answer, with the scores that the judge gave.

    Of two sides compared the score is 1 for the one that was preferred; a row without a verdict has none.
    """
    sides = [side for side in "ab" if side in line]
    scores = line.get("scores") or {}
    if line.get("verdict"):
        scores = {side: {PREFERRED: float(line["verdict"] == side)} for side in sides}
    failed = {"finish": "error"} if line.get("excluded") == "unanswered" else {}
    answers = {
        side: {
            "prediction": line[side],
            "scores": scores.get(side) or {},
            **(failed if not line[side] else {}),
        }
        for side in sides
    }
    asked = {"id": line["id"], "prompt": line["prompt"], "references": line["references"]}
    return {**asked, **(answers if len(sides) == 2 else answers["a"])}
