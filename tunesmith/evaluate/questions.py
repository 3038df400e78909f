"""Rows with answers, and metrics by name. Imports no torch: what is wrong with them is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tunesmith.data.prompts import prompts_sha256, read_prompts, read_references
from tunesmith.data.read import files_of
from tunesmith.errors import DataError, SettingsError
from tunesmith.evaluate.metrics import METRICS, Metric
from tunesmith.records import Conversation
from tunesmith.settings import nearest

DEFAULT_METRICS = ("exact_match", "f1_char")


@dataclass(frozen=True)
class Questions:
    """Rows with answers, from a file. `name` is what result files are called; `files` were all read."""

    path: str
    name: str
    conversations: list[Conversation]
    files: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Of the rows that are asked, their answers included, in their order."""
        return prompts_sha256(self.conversations)


def read_questions(data: str, references: str | None = None, limit: int | None = None) -> Questions:
    """The rows of `data`, with their answers as references, or with those of a second file (a line a row).

    Raises DataError naming every row without an answer.
    """
    rows = read_prompts(data)
    if references is not None:
        rows = read_references(references, rows)
    rows = rows[:limit]
    unanswered = [row for row in rows if not any(reference.strip() for reference in row.references)]
    if unanswered:
        raise DataError(
            f"{len(unanswered)} of {len(rows)} rows have no answer to compare with.",
            details=[str(row.origin) for row in unanswered],
            fix="Add the answers to the rows, or give them in a text file, a line a row: --references FILE.",
        )
    if not rows:
        raise DataError(f"{data} holds no rows.", fix="Give a file with at least one row.")
    files = [*files_of(data), *(files_of(references) if references is not None else [])]
    return Questions(data, Path(data).stem, rows, tuple(files))


def choose_metrics(names: str | Sequence[str] | None, questions: Questions) -> list[Metric]:
    """The metrics by name, or the one; else exact_match and f1_char, and verse_form if all answers have it.

    Raises SettingsError for an unknown name.
    """
    if names is None:
        chosen = list(DEFAULT_METRICS)
        form = METRICS["verse_form"].score
        if all(form(row.references[0], (), _last_words(row)) for row in questions.conversations):
            chosen.append("verse_form")
        return [METRICS[name] for name in chosen]
    names = [names] if isinstance(names, str) else names
    if unknown := [name for name in names if name not in METRICS]:
        raise SettingsError(
            f"There is no metric {unknown[0]!r}{nearest(unknown[0], list(METRICS))}.",
            fix=f"Choose from: {', '.join(METRICS)}.",
        )
    return [METRICS[name] for name in dict.fromkeys(names)]


def _last_words(row: Conversation) -> str:
    return next((turn.content for turn in reversed(row.prompt.messages) if turn.role == "user"), "")
