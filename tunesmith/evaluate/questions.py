"""Rows with answers, and metrics by name. Imports no torch: what is wrong with them is told at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tunesmith.data.prompts import prompts_sha256, read_prompts, read_references
from tunesmith.data.read import files_of
from tunesmith.errors import DataError, SettingsError
from tunesmith.evaluate.findings.general import GENERAL, NAME, general_rows, is_general
from tunesmith.evaluate.metrics import METRICS, NAMES, Metric, Named, resolve
from tunesmith.evaluate.metrics.scorable import check_scorable
from tunesmith.records import Conversation
from tunesmith.settings import nearest

DEFAULT_METRICS = ("f1_char", "exact_match")
"""The first one is the primary metric."""
DOCUMENT_COLUMNS = ("document", "source_document", "document_id", "doc_id")
"""Where rows say which document they are from."""
NO_VALUE = "(none)"


@dataclass(frozen=True)
class Questions:
    """Rows with answers, from a file. `name` is what result files are called, `files` were all read, and
    `rest` are the rows beyond a limit.
    """

    path: str
    name: str
    conversations: list[Conversation]
    files: tuple[str, ...] = ()
    rest: tuple[Conversation, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Of the rows that are asked, their answers included, in their order."""
        return prompts_sha256(self.conversations)


def read_questions(
    data: str,
    references: str | None = None,
    limit: int | None = None,
    *,
    by: Sequence[str] = (),
    document: str | None = None,
) -> Questions:
    """The rows of `data`, with their answers as references, or with those of a second file (a line a row).

    `by` are columns that figures are given by as well, `document` the one that says which document a row is
    from (`with_groups`). `data` may be `general`: the built-in general questions.

    Raises DataError naming every row without an answer.
    """
    if is_general(data) and references is None:
        return Questions(NAME, NAME, with_groups(general_rows()[:limit], by, document))
    rows = read_prompts(data)
    if references is not None:
        rows = read_references(references, rows)
    rest = () if limit is None else tuple(rows[limit:])
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
    return Questions(data, Path(data).stem, with_groups(rows, by, document), tuple(files), rest)


def choose_metrics(named: Named | Sequence[Named] | None, questions: Questions) -> list[Metric]:
    """The metrics by name, or the one; else f1_char and exact_match, and verse_form if all answers have it.

    The general questions have a metric of their own. A metric may be a function of one's own, or
    FILE.py:function. Raises SettingsError for an unknown name,
    MissingExtraError for one whose package isn't there, DataError for rows that one can't be had of.
    """
    if named is None and questions.path == NAME and not questions.files:
        named = GENERAL
    if named is None:
        form = METRICS["verse_form"].score
        verses = all(form(row.references[0], (), row.last_asked) for row in questions.conversations)
        named = [*DEFAULT_METRICS, *(("verse_form",) if verses else ())]
    elif isinstance(named, str | Metric) or callable(named):
        named = [named]
    chosen = resolve(named, [row.references for row in questions.conversations])
    if not chosen:
        raise SettingsError("No metric is named.", fix=f"Choose from: {', '.join(NAMES)}.")
    check_scorable(chosen, questions.conversations)
    return chosen


def with_groups(
    rows: Sequence[Conversation], by: Sequence[str] = (), document: str | None = None, elsewhere: str = ""
) -> list[Conversation]:
    """The rows with what figures are asked by: `meta["groups"]`, and `meta["document"]` where they name one.

    `document` is the column; without it, the first of DOCUMENT_COLUMNS that all rows have. Raises DataError
    for a column that no row has, or that `document` names and not all have; `elsewhere` says where it may be.
    """
    columns = [row.meta.get("columns", {}) for row in rows]
    there = list(dict.fromkeys(name for each in columns for name in each))
    wrong = [name for name in by if name not in there]
    if document is not None and not all(_text(each.get(document)) for each in columns):
        wrong.append(document)
    if wrong:
        raise DataError(
            f"The rows have no column {wrong[0]!r}, or not all of them have{nearest(wrong[0], there)}.",
            fix=f"Name one of these: {', '.join(there) or 'none is there'}{elsewhere}.",
        )
    if document is None:
        named = (name for name in DOCUMENT_COLUMNS if all(_text(each.get(name)) for each in columns))
        document = next(named, None)
    return [
        replace(
            row,
            meta={
                **row.meta,
                "groups": {name: _text(each.get(name)) or NO_VALUE for name in by},
                "document": _text(each.get(document)) if document else "",
            },
        )
        for row, each in zip(rows, columns, strict=True)
    ]


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
