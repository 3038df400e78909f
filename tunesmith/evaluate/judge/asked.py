"""What a judgement is asked for, with its rows, checked as a whole before any model is loaded. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.prompts import prompts_sha256, read_prompts, read_references
from tunesmith.errors import DataError, RunError, SettingsError, UsageError
from tunesmith.evaluate.blind.answers import Answered, check_asked, is_answers, paired_answers, read_answers
from tunesmith.evaluate.blind.folder import open_test
from tunesmith.evaluate.judge.prompts import Language
from tunesmith.evaluate.judge.rubric import read_rubric
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import check_endpoints
from tunesmith.records import Conversation
from tunesmith.rundir import is_run

TOKENS = 512


@dataclass(frozen=True)
class Request:
    """A judgement. `rubric` grades instead of comparing; `language` None is that of the data.

    `references`: the judge sees the rows' own answers. `again`: nothing of an earlier result is used.
    """

    a: str
    b: str | None
    judge: str
    data: str | None = None
    truth: str | None = None
    rubric: str | None = None
    language: Language | None = None
    limit: int | None = None
    references: bool = True
    tokens: int = TOKENS
    dtype: str = "auto"
    template: str | None = None
    blind: Path | None = None
    output: Path | None = None
    again: bool = False


@dataclass(frozen=True)
class Asked:
    """A request with its rows: ids, questions and references of each, the files of answers by name."""

    request: Request
    names: tuple[str, ...]
    files: dict[str, Answered]
    prompts: list[Conversation]
    ids: list[str]
    questions: list[str]
    references: list[tuple[str, ...]]
    output: Path
    sha256: str

    @property
    def data(self) -> str:
        """The file that the rows are from."""
        return self.request.data or self.names[0]

    @classmethod
    def of(cls, request: Request, sampling: Sampling) -> Asked:
        """Read the rows and check everything. Raises UsageError, SettingsError, DataError, RunError."""
        names = (request.a,) if request.b is None else (request.a, request.b)
        models = [name for name in names if not is_answers(name)]
        _check(request, names, models, sampling)
        files = {name: read_answers(Path(name)) for name in names if is_answers(name)}
        if request.data is not None:
            prompts = read_prompts(request.data)
            if request.truth is not None:
                prompts = read_references(request.truth, prompts)
            prompts = prompts[: request.limit]
            ids = [row.key for row in prompts]
            if not prompts or len(set(ids)) < len(ids):
                why = "holds no rows" if not prompts else "has an id twice"
                raise DataError(f"{request.data} {why}.", fix="Give rows with an id each, or without ids.")
            for answered in files.values():
                check_asked(answered, {row.key: row.question for row in prompts})
            questions = [row.question for row in prompts]
            references = [row.references for row in prompts]
            digest = prompts_sha256(prompts)[:16]
        else:
            found = paired_answers(files[names[0]], files[names[-1]])[: request.limit]
            prompts = []
            ids, questions = [one.id for one in found], [one.prompt for one in found]
            references = [one.references for one in found]
            digest = _digest([ids, questions, references])[:16]
        output = request.output or _output(request, names, digest, files, sampling)
        if output.suffix != ".jsonl":
            output = output.with_name(output.name.removesuffix(".json") + ".jsonl")
        return cls(request, names, files, prompts, ids, questions, references, output, digest)


def _check(request: Request, names: Sequence[str], models: Sequence[str], sampling: Sampling) -> None:
    check_endpoints(models, sampling, dtype=request.dtype, template=request.template)
    check_endpoints((request.judge,), Sampling.model_validate({}))
    problems = []
    if request.b is None and request.rubric is None:
        problems.append("one side alone is graded by a rubric: add --rubric builtin, or name a second one")
    if models and request.data is None:
        problems.append(f"there are no prompts to ask {' and '.join(models)}: add --data FILE")
    if is_answers(request.judge):
        problems.append(f"--judge {request.judge} is a file of answers, and a judge has to answer")
    if request.truth is not None and request.data is None:
        problems.append("--references goes with --data, whose rows it has the answers of")
    if request.blind is not None and request.rubric is not None:
        problems.append("--blind compares votes between two answers, and a rubric gives none: leave out one")
    if request.output is not None and request.output.is_dir():
        problems.append(f"--output {request.output} is a folder: give a file in it")
    if len(set(names)) < len(names):
        problems.append("A and B are the same")
    if problems:
        raise UsageError(
            "This can't be judged.", details=problems, fix="tunesmith judge --help has examples."
        )
    if sampling.answers > 1:
        raise SettingsError(
            "num_return_sequences gives several answers to a prompt; one is judged.", fix="Leave it out."
        )
    if request.rubric is not None:
        read_rubric(request.rubric, "en")
    if request.blind is not None:
        _check_unsealed(request.blind)


def _check_unsealed(folder: Path) -> None:
    """Raise RunError for a blind test whose report wasn't made: looking would unseal it."""
    test = open_test(folder)
    if test.unsealed() is None or not test.figures_file.is_file():
        raise RunError(
            f"{folder} is still sealed: what people said isn't known before its report.",
            fix=f"When everybody is through: tunesmith blind report {folder}",
        )


def _output(
    request: Request, names: Sequence[str], rows: str, files: dict[str, Answered], sampling: Sampling
) -> Path:
    """In the folder of the run that was given last, else in eval/; named by data and all that is asked."""
    runs = [Path(name) for name in names if Path(name).is_dir() and is_run(Path(name))]
    folder = runs[-1] / "eval" if runs else Path("eval")
    contents = [hashlib.sha256(one.path.read_bytes()).hexdigest() for one in files.values()]
    rubric = read_rubric(request.rubric, "en").model_dump(mode="json") if request.rubric is not None else None
    asked = [
        *(str(Path(name).resolve()) if Path(name).exists() else name for name in (*names, request.judge)),
        rows, contents, sampling.given(), rubric, request.language, request.references, request.tokens,
        request.dtype, request.template,
    ]  # fmt: skip
    stem = Path(request.data or names[0]).stem
    return folder / f"{stem}.judged-{_digest(asked)[:8]}.jsonl"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
