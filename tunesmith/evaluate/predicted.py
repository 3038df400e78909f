"""Predictions that are there already: a JSONL file from `generate`, `eval`, or any other tool.

A line has an answer, and as it likes `id`, a prompt, references (a text or a list) and columns for groups.
Each tool has its own names for them (LLaMA-Factory: prompt, predict, label); those taken are told. Where the
lines lack references, a file of rows has them (joining.py). Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.prompts import REFERENCES
from tunesmith.data.read import read_file
from tunesmith.errors import DataError
from tunesmith.evaluate.joining import PROMPTS, Line, joined, line_of
from tunesmith.evaluate.questions import Questions, with_groups
from tunesmith.records import Completion, Conversation, Message

# Where tools put an answer and its reference: the first name that the file has is taken. The last
# two of ANSWERS are references elsewhere: they are answers where references have a name of their own.
ANSWERS = (
    "prediction", "predict", "pred", "predicted", "generated_text", "generation", "model_output",
    "model_answer", "hypothesis", "response", "output",
)  # fmt: skip
TRUTHS = ("label", "labels", "ground_truth", "gold", "truth", *REFERENCES)
NEEDS_TRUTH = ("response", "output")
LINE = (
    'A line is {"id": …, "prompt": …, "prediction": …, "references": […]}, or has the names of another tool '
    f"({', '.join(ANSWERS[1:])}); references may stand in a file of their own: --data FILE."
)


@dataclass(frozen=True)
class Predictions:
    """The answers of a file as a Completer: `name` is the file, `told` how it was read and joined."""

    name: str
    answers: Mapping[str, Completion]
    told: tuple[str, ...] = ()

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        """The answer to each conversation, by its key."""
        for conversation in conversations:
            yield [self.answers[conversation.key]]

    def facts(self) -> dict[str, Any]:
        """Which answers these are: a file may be written anew before a call goes on."""
        said = json.dumps([[key, answer.text] for key, answer in self.answers.items()])
        return {"model": self.name, "answers": hashlib.sha256(said.encode()).hexdigest()[:16]}


def is_predictions(name: str) -> bool:
    """Whether a name of a model is that of a file of answers. Raises DataError if such a file isn't there."""
    if Path(name).suffix not in (".jsonl", ".json") or Path(name).expanduser().is_dir():
        return False
    if not Path(name).expanduser().is_file():
        raise DataError(f"There is no file {name}.", fix="Give a file of answers, a model or a run.")
    return True


def read_predictions(
    path: str,
    rows: Questions | None = None,
    *,
    by: Sequence[str] = (),
    document: str | None = None,
) -> tuple[Questions, Predictions]:
    """The questions that a file of predictions answers, and the answers.

    `rows` has the references, and prompts and columns where the file lacks them; then each of its rows must
    have one prediction (joining.py), and those beyond its limit may. Raises DataError naming every line
    without a prediction or a reference, and ids that come twice or on one side alone.
    """
    file = read_file(path)
    if file.bad or not file.rows:
        raise DataError(
            f"{path} has lines that can't be read." if file.bad else f"{path} holds no predictions.",
            details=[str(row) for row in file.bad],
            fix=LINE,
        )
    keys = _Keys.of([row.value for row in file.rows if isinstance(row.value, dict)], joined=rows is not None)
    lines = [line_of(row, keys.answer, _references(row.value, keys.truths)) for row in file.rows]
    named, how, other = [line.id or str(at) for at, line in enumerate(lines)], "", ""
    if rows is not None:
        named, how = joined(lines, rows)
    known = {row.key: row for row in rows.conversations} if rows is not None else {}
    beyond = {row.key for row in rows.rest} if rows is not None else set()
    found: list[Conversation] = []
    answers: dict[str, Completion] = {}
    bad: list[str] = []
    for at, (line, name) in enumerate(zip(lines, named, strict=True)):
        value: dict[str, Any] = line.row.value if isinstance(line.row.value, dict) else {}
        of_rows = known.get(name)
        references = of_rows.references if of_rows else line.truths
        if name in beyond:
            continue
        if not isinstance(value.get(keys.answer), str) and value.get("finish") != "error":
            bad.append(f"{line.row.origin}: it has no text under `{keys.answer}`")
        elif rows is not None and of_rows is None:
            bad.append(f"{line.row.origin}: there is no row with the id {name} in {rows.path}")
        elif not any(each.strip() for each in references):
            bad.append(f"{line.row.origin}: it has no references")
        else:
            prompt = Message("user", str(value.get(keys.prompt, "")))
            asked = of_rows or Conversation((prompt,), line.row.origin)
            columns = {**asked.meta.get("columns", {}), **value}
            meta = {"columns": columns, "number": at}
            found.append(replace(asked, id=name, origin=line.row.origin, references=references, meta=meta))
            answers[name] = _completion(value, keys.answer)
    bad += _twice([name for name in named if name not in beyond], path)
    there = {*named}
    if lacking := [name for name in known if name not in there]:
        shown = ", ".join(lacking[:10]) + (", …" if len(lacking) > 10 else "")
        bad.append(f"{path}: no prediction for {len(lacking)} of {len(known)} rows: {shown}")
    if bad or not found:
        raise DataError(
            f"{path} can't be scored.",
            details=bad,
            fix=LINE
            if rows is None
            else f"Give each row of {rows.path} one line with its `id`; --limit takes the first rows.",
        )
    if rows is not None:
        _check_answers(keys.answer, found, answers, path)
        other = _other_references(lines, named, known, path, rows.path)
    files = (path, *(rows.files if rows is not None else ()))
    elsewhere = "" if rows is not None else ", or give the file of rows that has it: --data FILE"
    data = path if rows is None else rows.path
    questions = Questions(data, Path(path).stem, with_groups(found, by, document, elsewhere), files)
    return questions, Predictions(path, answers, tuple(filter(None, (keys.told(rows), how, other))))


def _check_answers(
    column: str, found: Sequence[Conversation], answers: Mapping[str, Completion], path: str
) -> None:
    """Raise DataError where a column that elsewhere holds references holds those of the rows, all of them."""
    if column in NEEDS_TRUTH and all(answers[row.key].text in row.references for row in found):
        raise DataError(
            f"The column `{column}` of {path} holds the rows' own references, not answers.",
            fix="Name the column of answers `prediction`.",
        )


def _other_references(
    lines: Sequence[Line], named: Sequence[str], known: Mapping[str, Conversation], path: str, data: str
) -> str:
    """A sentence, where lines have references that aren't those of their rows."""
    other = sum(
        bool(line.truths) and name in known and not {*line.truths} & {*known[name].references}
        for line, name in zip(lines, named, strict=True)
    )
    if not other:
        return ""
    return f"{other} lines of {path} have other references than their rows; those of {data} are taken."


@dataclass(frozen=True)
class _Keys:
    """The columns of a file that are answer, prompt and references (the first that a row has)."""

    answer: str
    prompt: str
    truths: tuple[str, ...]
    columns: frozenset[str]

    @classmethod
    def of(cls, lines: Sequence[dict[str, Any]], *, joined: bool) -> _Keys:
        """`joined`: the references may be in another file."""
        columns = frozenset(name for line in lines for name in line)
        there = [name for name in ANSWERS if name in columns]
        plain = [n for n in there if n not in NEEDS_TRUTH or joined or columns & ({*TRUTHS} - {*NEEDS_TRUTH})]
        answer = next(iter(plain), ANSWERS[0])
        prompt = next((name for name in PROMPTS if name in columns and name != answer), PROMPTS[0])
        return cls(answer, prompt, tuple(name for name in TRUTHS if name != answer), columns)

    def told(self, rows: Questions | None) -> str:
        """``Taken: answers from `predict`, references from `label`, prompts from `prompt`.``"""
        if self.answer == ANSWERS[0]:
            return ""  # our own names
        truth = next((name for name in self.truths if name in self.columns), None)
        parts = [f"answers from `{self.answer}`", f"references from `{truth}`" if truth else ""]
        if rows is not None:
            parts[1:] = [f"references from {rows.path}"]
        elif self.prompt in self.columns:
            parts.append(f"prompts from `{self.prompt}`")
        return f"Taken: {', '.join(filter(None, parts))}."


def _references(value: object, columns: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(value, dict):
        return ()
    for column in columns:
        found = value.get(column)
        if isinstance(found, str) and found.strip():
            return (found,)
        if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
            return tuple(found)
    return ()


def _completion(value: dict[str, Any], column: str) -> Completion:
    """The answer with what the line says of it; tokens that it doesn't tell are 0."""
    tokens, seconds = value.get("tokens"), value.get("seconds")
    if value.get("finish") == "error":
        return Completion("", "error", 0, 0, error=str(value.get("error") or "no reason is given"))
    return Completion(
        value[column],
        "length" if value.get("finish") == "length" else "stop",
        0,
        tokens if isinstance(tokens, int) else 0,
        float(seconds) if isinstance(seconds, int | float) else 0.0,
    )


def _twice(names: Sequence[str], path: str) -> list[str]:
    seen: set[str] = set()
    again = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    return [f"{path}: the id {name} comes more than once" for name in dict.fromkeys(again)]
