"""Two models' answers to the same prompts, from files as `tunesmith generate` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with both answers."""

    id: str
    prompt: str
    a: str
    b: str
    references: tuple[str, ...] = ()

    @property
    def alike(self) -> bool:
        """Whether there is nothing to choose: the answers differ in outer white space at most."""
        return self.a.strip() == self.b.strip()


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of one file: by id, with the name that the file gives their model."""

    path: Path
    model: str
    lines: dict[str, Mapping[str, Any]]

    @property
    def cut(self) -> int:
        """How many answers reached the limit of tokens."""
        return sum(line.get("finish") == "length" for line in self.lines.values())


def is_answers(name: str) -> bool:
    """Whether a word of the command line means a file of answers, and not a model or a run."""
    return Path(name).suffix == ".jsonl"


def read_answers(path: Path) -> Answered:
    """A file of predictions (JSONL with id, prompt, prediction). Raises one DataError with every bad line."""
    try:
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(
            f"There is no file {path}.", fix="Answers are made by `tunesmith generate`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}.", fix="Give a JSONL file in UTF-8.") from None
    lines: dict[str, Mapping[str, Any]] = {}
    problems = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        line, wrong = _line(text)
        if not wrong and line["id"] in lines:
            wrong = f"the id {line['id']!r} is there already"
        if wrong:
            problems.append(f"{path}:{number}: {wrong}")
        else:
            lines[line["id"]] = line
    if problems or not lines:
        raise DataError(
            f"{path} has lines that aren't answers." if problems else f"{path} holds no answers.",
            details=problems,
            fix="Each line needs id, prompt and prediction, as `tunesmith generate` writes them.",
        )
    models = {str(line.get("model") or "") for line in lines.values()}
    return Answered(path, models.pop() if len(models) == 1 else "", lines)


def _line(text: str) -> tuple[dict[str, Any], str]:
    """The line with its id as text, and what is wrong with it."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}, "it isn't JSON"
    if not isinstance(line, dict):
        return {}, "it isn't an object"
    if missing := [name for name in ("id", "prompt", "prediction") if name not in line]:
        return {}, f"{', '.join(missing)} is missing"
    if wrong := [name for name in ("prompt", "prediction") if not isinstance(line[name], str)]:
        return {}, f"{', '.join(wrong)} isn't a text"
    references = [mended(str(one)) for one in line.get("references") or ()]
    texts = {name: mended(str(line[name])) for name in ("id", "prompt", "prediction")}
    return {**line, **texts, "references": references}, ""


def mended(text: str) -> str:
    """The text with � for halves of characters, which no page and no UTF-8 file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_asked(answered: Answered, prompts: Mapping[str, str]) -> None:
    """Raise DataError that names every one of these prompts, given by id, that the file doesn't answer."""
    problems = [f"{key}: there is no answer" for key in prompts if key not in answered.lines]
    problems += [
        f"{key}: it was asked something else"
        for key, prompt in prompts.items()
        if key in answered.lines and answered.lines[key]["prompt"] != mended(prompt)
    ]
    if problems:
        raise DataError(
            f"{answered.path} doesn't answer {len(problems)} of the {len(prompts)} rows.",
            details=problems,
            fix="Give the data that was answered: the `--input` of `tunesmith generate`.",
        )


def paired_answers(a: Answered, b: Answered, ids: Sequence[str] | None = None) -> list[Pair]:
    """Both answers of each row, in A's order; `ids` names the rows, else both files must have the same ones.

    Raises one DataError that names every row that only one file has, or that was asked otherwise.
    """
    wanted = list(ids) if ids is not None else list(a.lines)
    problems = [f"{key}: not in {side.path}" for side in (a, b) for key in wanted if key not in side.lines]
    if ids is None:
        problems += [f"{key}: not in {a.path}" for key in b.lines if key not in a.lines]
    both = [key for key in wanted if key in a.lines and key in b.lines]
    problems += [
        f"{key}: the prompts differ" for key in both if a.lines[key]["prompt"] != b.lines[key]["prompt"]
    ]
    if problems:
        raise DataError(
            f"{a.path} and {b.path} aren't answers to the same prompts.",
            details=problems,
            fix="Let both models answer the same file: tunesmith generate MODEL --input FILE --output …",
        )
    return [
        Pair(
            key,
            a.lines[key]["prompt"],
            a.lines[key]["prediction"],
            b.lines[key]["prediction"],
            tuple(a.lines[key]["references"]),
        )
        for key in both
    ]
