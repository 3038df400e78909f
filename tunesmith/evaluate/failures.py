"""Rows without an answer, because a call failed: what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import GenerateError
from tunesmith.infer.predictions import answered
from tunesmith.records import Completion, Conversation
from tunesmith.words import counted


@dataclass(frozen=True, slots=True)
class Failed:
    """A row whose call failed, and why."""

    id: str
    prompt: str
    references: tuple[str, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "prompt": self.prompt,
            "prediction": "",
            "references": list(self.references),
            "scores": {},
            "finish": "error",
            "error": self.why,
        }


def check_some(name: str, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise GenerateError where no row at all was answered."""
    if rows and not answered(rows):
        reasons = dict.fromkeys(str(row.get("error", "")) for row in rows.values())
        raise GenerateError(
            f"{name} answered none of {counted(len(rows), 'row')}.",
            details=list(reasons),
            fix="Ask the model again."
            if Path(name).suffix in (".jsonl", ".json")
            else "Check the URL and the model's name if these words aren't an OpenAI-compatible server's. "
            "The same command asks again.",
        )


def failed_rows(rows: Sequence[Conversation], answers: Sequence[Completion]) -> dict[int, Failed]:
    """The rows without an answer, by their place."""
    return {
        at: Failed(row.key, row.question, row.references, answer.error)
        for at, (row, answer) in enumerate(zip(rows, answers, strict=True))
        if answer.finish == "error"
    }
