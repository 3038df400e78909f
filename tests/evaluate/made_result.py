"""A comparison on disk, made by `compare` of scripted models: two groups, better, same, empty, cut rows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.evaluate.made_run import Scripted, couplets
from tunesmith.disk import write_json
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import METRICS
from tunesmith.records import Conversation
from tunesmith.rundir import read_jsonl
from tunesmith.worklog import write_lines

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
NAMES = ("f1_char", "exact_match", "repetition", "length")


class Cut(Scripted):
    """A Scripted whose every fifth answer reached the limit."""

    def complete(self, conversations: Any) -> Any:
        for at, answers in enumerate(super().complete(conversations)):
            yield [replace(answers[0], finish="length")] if at % 5 == 4 else answers


def made_result(folder: Path, n: int = 60, **content: Any) -> Path:
    """Figures and rows in `folder`; returns the figures' file.

    Of B's answers one in three is right, one in six empty, one in six hostile, the others equal A's.
    """
    rows = [
        replace(row, meta={"groups": {"form": "五言" if at % 3 else "七言"}})
        for at, row in enumerate(couplets(n))
    ]

    def before(conversation: Conversation) -> str:
        return f"Plain ANSWER {conversation.origin.row}"

    def after(conversation: Conversation) -> str:
        at = conversation.origin.row
        right = conversation.references[0]
        return (right, before(conversation), " ", right, HOSTILE, before(conversation))[at % 6]

    metrics = [METRICS[name] for name in NAMES]
    output = folder / "test.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    result = compare(Scripted("base", before), Cut("runs/tang-1", after), rows, metrics, output=output)
    with_losses(output)
    figures = folder / "test.json"
    a, b = 60.0 / 12, 48.0 / 12
    loss = {"a": a, "b": b, "difference": {"value": b - a, "low": -1.2, "high": -0.8}, "verdict": "better"}
    write_json(figures, {**result.to_json(), "data": "data/test.json", "loss": loss, **content})
    return figures


def with_losses(output: Path) -> None:
    """Give rows the losses that a local model would have: each row of B costs 1 nat a token less."""
    lines = read_jsonl(output)
    for line in lines:
        line["a"] |= {"nll": 60.0, "label_tokens": 12}
        line["b"] |= {"nll": 48.0, "label_tokens": 12}
    write_lines(output, lines)


def outside(markdown: str) -> str:
    """What of a Markdown text isn't in blocks of code: no tag may be left there."""
    return re.sub(r"^```text\n.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)
