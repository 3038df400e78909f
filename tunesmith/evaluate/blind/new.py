"""A blind test from two models, runs or files of answers; an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from tunesmith.data.prompts import read_prompts
from tunesmith.disk import write_json
from tunesmith.errors import DataError, RunError, SettingsError, UsageError
from tunesmith.evaluate.blind.answers import (
    Answered,
    Pair,
    check_asked,
    is_answers,
    paired_answers,
    read_answers,
)
from tunesmith.evaluate.blind.draw import chosen_rows
from tunesmith.evaluate.blind.folder import BlindTest
from tunesmith.evaluate.blind.ratings import locked, timestamp
from tunesmith.records import Conversation
from tunesmith.rundir import read_jsonl

ITEMS = 50
REPEATS = 0.1

Answer = Callable[[str, Sequence[Conversation], Path], object]
"""Answers prompts with a model by name, into a file that may hold some of the answers already."""


@dataclass(frozen=True)
class Request:
    """What a test is made of. `settings` are those of the answers: sampling, number format, template."""

    a: str
    b: str
    data: str | None = None
    items: int = ITEMS
    repeats: float = REPEATS
    title: str = ""
    ask: str = ""
    references: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the folder is called: by the data, for the models' names would tell raters too much."""
        return Path(self.data).stem if self.data else "answers"

    @property
    def models(self) -> list[str]:
        """The sides that have to be asked."""
        return [name for name in (self.a, self.b) if not is_answers(name)]


@dataclass(frozen=True)
class Made:
    """A test that is there: how many pairs are shown, how often again, how many were alike."""

    test: BlindTest
    pairs: int
    repeats: int
    alike: int


def new(request: Request, answer: Answer, *, output: Path | None = None) -> Made:
    """Draw rows, have them answered, lay out and seal; everything wrong with the request is told before that.

    Without `output` the folder is blind/<name of the data>, numbered where that is another test. The seed is
    the system's, is kept in the folder's sealed part and given to nobody. Raises UsageError, DataError,
    RunError.
    """
    prompts, files = _read(request)
    rows = [row.key for row in prompts] if prompts is not None else list(files[request.a].lines)
    asked = {**asdict(request), "rows": rows}
    test = _free(output, request.name, asked)
    test.seal()
    with locked(test.sealed / "lock"):
        if not test.request_file.is_file():
            write_json(test.request_file, {**asked, "seed": secrets.token_hex(16), "at": timestamp()})
        seed = str(json.loads(test.request_file.read_text(encoding="utf-8"))["seed"])
        numbers = chosen_rows(len(rows), request.items, seed)
        ids = [rows[number] for number in numbers]
        for side, name in (("a", request.a), ("b", request.b)):
            if name not in files:
                file = test.sealed / f"{side}.jsonl"
                assert prompts is not None
                if not file.is_file() or _lines(file) < len(ids):
                    answer(name, [prompts[number] for number in numbers], file)
        sides = [
            files.get(name) or read_answers(test.sealed / f"{side}.jsonl")
            for side, name in (("a", request.a), ("b", request.b))
        ]
        return _laid_out(test, request, seed, sides, ids)


def _laid_out(
    test: BlindTest, request: Request, seed: str, sides: Sequence[Answered], ids: Sequence[str]
) -> Made:
    a, b = sides
    _check_whole(sides, ids)
    pairs = paired_answers(a, b, ids)
    differing = [pair for pair in pairs if not pair.alike]
    if not differing:
        raise DataError(
            f"Both answer all {len(pairs)} prompts alike: there is nothing to choose.",
            fix="Are these two different models? Sampling settings that draw differ more: temperature=0.7.",
        )
    repeats = request.repeats
    if repeats and len(differing) >= 4:
        repeats = max(repeats, 1 / len(differing))
    key = {
        "at": timestamp(),
        "a": _side(request.a, a, ids),
        "b": _side(request.b, b, ids),
        "data": request.data,
        "settings": dict(request.settings) if request.models else {},
        "alike": [_shown(pair) for pair in pairs if pair.alike],
    }
    test.create(
        differing, repeats=repeats, seed=seed, key=key,
        title=request.title, ask=request.ask, references=request.references,
    )  # fmt: skip
    shown = len(test.public()["items"])
    return Made(test, len(differing), shown - len(differing), len(pairs) - len(differing))


def _check_whole(sides: Sequence[Answered], ids: Sequence[str]) -> None:
    """Raise DataError for calls that failed: raters would see an empty answer and vote against it."""
    failed = [
        f"{side.path}: {key}: {line.get('error') or 'the call failed'}"
        for side in sides
        for key in ids
        if (line := side.lines.get(key, {})).get("finish") == "error"
    ]
    if failed:
        raise DataError(
            f"{len(failed)} answers are missing, because their calls failed.",
            details=failed,
            fix="The same command asks them again; a file of answers goes on with "
            "`tunesmith generate … --resume`.",
        )


def _side(name: str, answered: Answered, ids: Sequence[str]) -> dict[str, Any]:
    used = replace(answered, lines={key: answered.lines[key] for key in ids})
    return {"name": name, "model": answered.model or name, "cut": used.cut}


def _shown(pair: Pair) -> dict[str, str]:
    return {"row": pair.id, "prompt": pair.prompt, "answer": pair.a}


def _read(request: Request) -> tuple[list[Conversation] | None, dict[str, Answered]]:
    """The rows to ask, if there are models to ask or rows were named, and the files of answers by name."""
    if request.settings.get("num_return_sequences", 1) != 1:
        raise SettingsError(
            "num_return_sequences gives several answers to a prompt; raters see one.", fix="Leave it out."
        )
    if request.items < 1 or not 0 <= request.repeats <= 0.5:
        raise UsageError(
            f"{request.items} items with a share of {request.repeats} repeats can't be drawn.",
            fix="Give at least 1 item, and a share from 0 to 0.5.",
        )
    problems, files, prompts = [], dict[str, Answered](), None
    for name in dict.fromkeys((request.a, request.b)):
        if is_answers(name):
            try:
                files[name] = read_answers(Path(name))
            except DataError as error:
                problems.append(error)
    if request.data is not None:
        try:
            prompts = _told_apart(read_prompts(request.data))
        except DataError as error:
            problems.append(error)
    elif request.models:
        raise UsageError(
            f"There are no prompts to ask {' and '.join(request.models)}.",
            fix="Add --data FILE. Without it, A and B must both be files of answers (.jsonl).",
        )
    if len(problems) == 1:
        raise problems[0]
    if problems:
        details = [line for error in problems for line in (error.what, *error.details)]
        raise DataError("The test can't be made.", details=details, fix=problems[0].fix)
    if prompts is not None and not prompts:
        raise DataError(f"{request.data} holds no rows.", fix="Give a file with at least one row.")
    # What doesn't fit is told before anything is drawn, and before hours of answering.
    if prompts is None:
        paired_answers(files[request.a], files[request.b])
    for answered in files.values() if prompts is not None else ():
        check_asked(answered, {row.key: row.question for row in prompts or ()})
    return prompts, files


def _told_apart(rows: list[Conversation]) -> list[Conversation]:
    """Rows whose ids name one row each: their own, or their numbers where two have the same."""
    if len({row.key for row in rows}) == len(rows):
        return rows
    return [replace(row, id="", meta={**row.meta, "number": at}) for at, row in enumerate(rows)]


def _free(output: Path | None, name: str, asked: Mapping[str, Any]) -> BlindTest:
    """A folder where nothing is, or one in which this very test was begun. Raises RunError."""
    if output is None:
        return next(test for test in _numbered(name) if not test.path.exists() or _begun(test, asked))
    test = BlindTest(output)
    if test.test_file.is_file():
        raise RunError(f"{output} is a blind test already.", fix="Give another folder with --output.")
    if test.request_file.is_file() and not _begun(test, asked):
        raise RunError(
            f"In {output} another blind test was begun, with other models, rows or settings.",
            fix="Give the words that it was begun with, or another folder with --output.",
        )
    if output.exists() and not test.request_file.is_file() and (output.is_file() or any(output.iterdir())):
        raise RunError(f"{output} is there already.", fix="Give another folder with --output.")
    return test


def _numbered(name: str) -> Iterator[BlindTest]:
    return (BlindTest(Path("blind") / (name if n == 1 else f"{name}-{n}")) for n in count(1))


def _begun(test: BlindTest, asked: Mapping[str, Any]) -> bool:
    """Whether this very test was begun here and isn't made yet."""
    if test.test_file.is_file() or not test.request_file.is_file():
        return False
    try:
        before = json.loads(test.request_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return {**before, "seed": "", "at": ""} == {**json.loads(json.dumps(asked)), "seed": "", "at": ""}


def _lines(file: Path) -> int:
    """Answers in a file; calls that failed are none."""
    return sum(line.get("finish") != "error" for line in read_jsonl(file))
