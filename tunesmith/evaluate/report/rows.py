"""Rows of a result: scores and changes of every one of them, and the block that the page's script reads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.evaluate.judge.rows import as_compared
from tunesmith.evaluate.metrics.given_choices import letter, lettered
from tunesmith.evaluate.numbers import number
from tunesmith.evaluate.report.figures import Better, better, loss_of
from tunesmith.redact import short_paths, without_secrets
from tunesmith.rundir import read_jsonl

MOST_ROWS = 20_000
MOST_CHARACTERS = 6_000_000  # of all texts; a page of more opens slowly on a phone
TEXT_LIMITS = (1200, 400, 150)  # characters of a text: the first one with which all rows fit
SAME = 1e-9


@dataclass(frozen=True)
class Changes:
    """B - A of each row in one measure, in the rows' order; `better` says which way is up."""

    name: str
    better: Better
    differences: tuple[float, ...]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows on which B is worse, the same, better; where neither way is: lower, the same, higher."""
        up = sum(d > SAME for d in self.differences)
        down = sum(d < -SAME for d in self.differences)
        worse, gained = (up, down) if self.better == "lower" else (down, up)
        return worse, len(self.differences) - up - down, gained

    @property
    def spread(self) -> tuple[float, float, float]:
        """Least, median and greatest difference."""
        return min(self.differences), statistics.median(self.differences), max(self.differences)


def read_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines beside a result, redacted; empty where the file is gone, and of a benchmark.

    Those of a judgement are in the form of a comparison's or an evaluation's, with the judge's scores.
    """
    if result["kind"] == "benchmark":  # the harness's own lines, each task's otherwise
        return []
    lines = [_clean(line) for line in read_jsonl(Path(result["file"]).with_suffix(".jsonl"))]
    return [as_compared(line) for line in lines] if result["kind"] == "judgement" else lines


def _clean(value: Any) -> Any:
    """A copy whose texts are redacted; numbers, which most of a line is, aren't looked at."""
    if isinstance(value, str):
        return short_paths(without_secrets(value), foreign=False)
    if isinstance(value, dict):
        return {key: one if isinstance(one, int | float) else _clean(one) for key, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list) else value


def changes(rows: Sequence[Mapping[str, Any]]) -> list[Changes]:
    """What changed row by row, the loss first, then each score that every row has on both sides."""
    if not rows or not all("a" in row and "b" in row for row in rows):
        return []
    found = []
    for name in measures(rows):
        sides = [(_score(row["a"], name), _score(row["b"], name)) for row in rows]
        differences = tuple(b - a for a, b in sides if a is not None and b is not None)
        if len(differences) == len(rows):
            found.append(Changes(name, better(name), differences))
    return found


def measures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what rows are measured by: loss, and the scores. A row whose call failed has none."""
    sides = [row.get("b") or row for row in rows]
    scores = dict.fromkeys(name for side in sides for name in side.get("scores") or {})
    return [*(["loss"] if any(loss_of(side) is not None for side in sides) else []), *scores]


def row_block(
    rows: Sequence[Mapping[str, Any]], primary: str | None = None, letters: Sequence[str] = ("A", "B")
) -> dict[str, Any]:
    """What the page's script is given: {"measures", "primary", "groups", "letters", "limit", "left_out",
    "rows": […]}.

    A row is {"id", "prompt", "references", "choices": text, "answers": [A, B] or [B], "cut": [bool, …],
    "failed": [null or why, …], "scores": [[A, B], …] in the order of the measures, "groups": [value, …]};
    numbers that aren't there are null.
    """
    kept, names = rows[:MOST_ROWS], measures(rows)
    limit = text_limit(kept)
    columns = list(dict.fromkeys(column for row in kept for column in row.get("groups") or {}))
    return {
        "measures": [{"name": name, "better": better(name)} for name in names],
        "primary": names.index(primary) if primary in names else 0,
        "groups": columns,
        "letters": list(letters),
        "limit": limit,
        "left_out": len(rows) - len(kept),
        "rows": [_row(row, names, columns, limit) for row in kept],
    }


def text_limit(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many characters of each text are in the page: fewer where there are very many rows."""
    lengths = [len(text) for row in rows for text in _texts(row)]

    def fits(limit: int) -> bool:
        listed = sum(len(likelihoods(row, limit)) for row in rows)
        return listed + sum(min(n, limit) for n in lengths) <= MOST_CHARACTERS

    return next(filter(fits, TEXT_LIMITS), TEXT_LIMITS[-1])


def _row(row: Mapping[str, Any], names: Sequence[str], columns: Sequence[str], limit: int) -> dict[str, Any]:
    sides = _sides(row)
    groups = row.get("groups") or {}
    return {
        "id": str(row.get("id", "")).rpartition("/")[2],
        "prompt": cut(row.get("prompt"), limit),
        "references": [cut(text, limit) for text in references(row)[:3]],
        "choices": likelihoods(row, limit),
        "answers": [cut(answer(row, side), limit) for side in sides],
        "cut": [side.get("finish") == "length" for side in sides],
        "failed": [failure(side) for side in sides],
        "scores": [[_rounded(_score(side, name)) for side in sides] for name in names],
        "groups": [str(groups.get(column, "")) for column in columns],
    }


def references(row: Mapping[str, Any]) -> list[str]:
    """What a row's true answer is; `C. H2O` where the reference names a choice."""
    right = row.get("right_choice")
    named = [f"{right}. {text}" for at, text in enumerate(row.get("choices") or []) if letter(at) == right]
    return named or [str(text) for text in row.get("references") or []]


def answer(row: Mapping[str, Any], side: Mapping[str, Any]) -> str:
    """A side's answer; with its letter where nothing was answered and it is the likeliest choice."""
    text = str(side.get("prediction") or "")
    chosen = "log_likelihoods" in side and "finish" not in side
    return lettered(text, row.get("choices") or []) if chosen else text


def likelihoods(row: Mapping[str, Any], limit: int) -> str:
    """A line for each of a row's choices, with how likely every side finds it; empty where nobody said.

    The texts are cut, as these are beside the row's own texts; the whole ones are in the JSONL.
    """
    sides = [side.get("log_likelihoods") or [] for side in _sides(row)]
    texts = [str(text) for text in row.get("choices") or []]
    if not texts or any(len(side) != len(texts) for side in sides):
        return ""
    most = limit // 10
    return "\n".join(
        f"{letter(at)}. {text if len(text) <= most else text[:most] + '…'}  "
        + " → ".join(number(side[at]) for side in sides)
        for at, text in enumerate(texts)
    )


def failure(answer: Mapping[str, Any]) -> str | None:
    """Why there is no answer, where a call failed: an empty one would be the model's."""
    return str(answer.get("error") or "") if answer.get("finish") == "error" else None


def cut(text: Any, limit: int) -> list[Any]:
    """[text, number of characters that are left out]."""
    text = "" if text is None else str(text)
    return [text[:limit], max(0, len(text) - limit)]


def _sides(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row["a"], row["b"]] if "a" in row and "b" in row else [row]


def _texts(row: Mapping[str, Any]) -> list[str]:
    answers = [answer(row, side) for side in _sides(row)]
    return [str(row.get("prompt") or ""), *answers, *references(row)[:3]]


def _score(answer: Mapping[str, Any], name: str) -> float | None:
    if name == "loss":
        return loss_of(answer)
    value = (answer.get("scores") or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value or abs(value) == float("inf") else round(value, 4)
