"""The account: what came of every chunk and every row, so that the numbers add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tunesmith.synth.make import Made
from tunesmith.synth.prepare import Prepared
from tunesmith.words import counted

PARTS = ("train", "valid", "test", "recall")


def account(prepared: Prepared, made: Made) -> dict[str, Any]:
    """Counts from documents to kept rows.

    Of what a model wrote: questions = empty + answers, and answers = rejected + waiting + kept.
    """
    written = [row for row in made.rows if row.kind != "continue"]
    kept = made.kept()
    unanswered = ("empty question", "empty answer")
    return {
        "documents": len(prepared.library.documents),
        "unread": len(prepared.library.unread),
        "chunks": len(prepared.chunks),
        "left_out": prepared.reasons(),
        "used": len(prepared.used),
        "without_rows": _counted(f"{kind}: {why}" for _, kind, why, _ in made.without),
        "continued": sum(row.kind == "continue" for row in made.rows),
        "questions": len(written),
        "empty": _counted(row.why for row in written if row.why in unanswered),
        "answers": sum(row.why not in unanswered for row in written),
        "rejected": _counted(row.why for row in written if row.why and row.why not in unanswered),
        "waiting": sum(row.waiting for row in written),
        "flagged_and_kept": _counted(flag.partition(":")[0] for row in kept for flag in row.flags),
        "kept": {part: n for part in PARTS if (n := sum(row.part == part for row in kept))},
        "kept_by_kind": _counted(row.kind for row in kept),
    }


def lines(content: dict[str, Any], *, made: bool) -> list[str]:
    """The account for a person; `made`: whether a model wrote rows."""
    told = [f"{counted(content['documents'], 'document')} -> {counted(content['chunks'], 'chunk')}"]
    told += _reasons(content["left_out"])
    if (pilot := content["chunks"] - sum(content["left_out"].values()) - content["used"]) > 0:
        told.append(f"  {pilot:,} not in the pilot")
    if content["continued"]:
        told.append(f"{counted(content['used'], 'chunk')} -> {counted(content['continued'], 'continuation')}")
    if made:
        told.append(f"{counted(content['used'], 'chunk')} -> {counted(content['questions'], 'question')}")
    told += _reasons(content["without_rows"], "chunk")
    total = sum(content["kept"].values())
    if made:
        told.append(f"{counted(content['questions'], 'question')} -> {counted(content['answers'], 'answer')}")
        told += _reasons(content["empty"])
        written = total - content["continued"]
        told.append(f"{counted(content['answers'], 'answer')} -> {written:,} kept")
        told += _reasons(content["rejected"])
        if content["waiting"]:
            told.append(f"  {content['waiting']:,} waiting for the judge")
    parts = ", ".join(f"{n:,} {part}" for part, n in content["kept"].items())
    told.append(f"{counted(total, 'row')}" + (f": {parts}" if parts else ""))
    return told


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda one: (-one[1], one[0])))


def _reasons(counts: dict[str, int], noun: str = "") -> list[str]:
    return [
        f"  {counted(n, noun) if noun else f'{n:,}'} {why if not noun else '(' + why + ')'}"
        for why, n in counts.items()
    ]
