"""Rows and training rows made by hand."""

from __future__ import annotations

from tunesmith.evaluate.findings.training_rows import TrainingRow
from tunesmith.evaluate.row import RowResult
from tunesmith.records import Completion


def row(said: str, *, prompt: str = "問", reference: str = "答") -> RowResult:
    """A row whose answer is `said`."""
    return RowResult("0", prompt, (reference,), Completion(said, "stop", 1, 1), {"f1_char": 0.0})


def trained(*answers: str) -> list[TrainingRow]:
    """Training rows with these answers, one a line of train.jsonl."""
    return [TrainingRow(f"train.jsonl:{at}", "問", answer) for at, answer in enumerate(answers, 1)]
