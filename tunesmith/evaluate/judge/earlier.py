"""What an earlier, finished judgement of the same has already: a second call pays for what failed alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.evaluate.judge.asking import CALLS, REPAIRS
from tunesmith.evaluate.results import beside
from tunesmith.records import Completion
from tunesmith.rundir import read_jsonl

_OURS = ("first", "side")  # what a line's calls have besides the worklog's


def earlier_answers(
    output: Path, side: str, facts: Mapping[str, Any], *, again: bool
) -> dict[int, Completion]:
    """A side's answers by row, where they were made by the very same; none with `again`."""
    content = _content(output)
    if again or content is None or (content.get("sides") or {}).get(side) != _plain(facts):
        return {}
    return {
        at: Completion(row[side], "stop", 0, 0)
        for at, row in enumerate(read_jsonl(output))
        if row.get("excluded") != "unanswered" and isinstance(row.get(side), str)
    }


def earlier_calls(
    output: Path, facts: Mapping[str, Any], *, again: bool
) -> dict[str, dict[int, dict[str, Any]]]:
    """Calls and repairs by number that didn't fail, where judge, prompt and answers are the very same."""
    found: dict[str, dict[int, dict[str, Any]]] = {CALLS: {}, REPAIRS: {}}
    content = _content(output)
    if again or content is None or content.get("made_by") != _plain(facts):
        return found
    at = -1
    for row in read_jsonl(output):
        before = None
        for call in row["calls"]:
            who = call.get("first") or call.get("side")
            kind = REPAIRS if who == before else CALLS
            at, before = at + (kind == CALLS), who
            if call["finish"] != "error":
                found[kind][at] = {name: value for name, value in call.items() if name not in _OURS}
    return found


def _content(output: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(beside(output, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("kind") == "judgement" else None


def _plain(facts: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(facts))
