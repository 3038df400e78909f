"""Where `eval` and `compare` write, and what they never write over.

    one      a model or run on a file                RUN/eval/<data>.eval.json and .eval.jsonl
    two      a run and its own base                  RUN/eval/<data>.json and .jsonl
    several  the last of them a run                  RUN/eval/<data>.vs-<the others>.json and .jsonl
             else                                    eval/<all of them>.<data>.json and .jsonl
Without a run the files go to eval/ in the working folder. Where they hold the figures of other rows or
of another model, <data>-2 is taken, and so on; the same rows measured again write the same files anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.evaluate.compare import part
from tunesmith.evaluate.questions import Questions
from tunesmith.evaluate.results import beside, sides_of
from tunesmith.infer.endpoint import is_endpoint
from tunesmith.rundir import RunDir, open_run
from tunesmith.worklog import begun_for

LONGEST = 100  # bytes of models' names in a file's name


@dataclass(frozen=True)
class Place:
    """A file of predictions (.jsonl), whose figures stand beside it, and the run that it is about."""

    predictions: Path
    run: RunDir | None


def of_one(output: Path | None, name: str, questions: Questions) -> Place:
    """For one model or run."""
    run = _run_at(name)
    who = "" if run else f"{_plain(name)}."
    models = (None if run else name,)
    return Place(_as_jsonl(output) if output else _free(_folder(run), who, questions, ".eval", models), run)


def of_predictions(output: Path | None, name: str, questions: Questions) -> Place:
    """For answers out of a file of this name."""
    return Place(_as_jsonl(output) if output else _free(Path("eval"), "", questions, ".eval", (name,)), None)


def of_comparison(
    output: Path | None, asked: Sequence[str], sides: Sequence[str], questions: Questions
) -> Place:
    """For sides of these names; `asked` are those that the person named, without a base that was added."""
    *others, last = sides
    run = _run_at(last)
    if output:
        return Place(_as_jsonl(output), run)
    if run is None:
        return Place(_free(Path("eval"), f"{_together(sides)}.", questions, "", sides), None)
    if len(asked) == 1:
        return Place(_free(run.eval, "", questions, "", (None, None)), run)
    return Place(_free(run.eval, "", questions, f".vs-{_together(others)}", (*others, None)), run)


def check(output: Path | None, questions: Questions) -> None:
    """Before hours of work: what will be written for `output` replaces nothing but earlier results."""
    if output is None:
        return
    if output.is_dir():
        raise UsageError(
            f"--output {output} is a folder.", fix=f"Give a file in it: {output / 'predictions.jsonl'}."
        )
    predictions = _as_jsonl(output)
    for file in (predictions, beside(predictions, ".json")):
        if not file.exists():
            continue
        if any(file.samefile(read) for read in questions.files):
            what = "which holds the rows or their answers"
        elif not _ours(file):
            what = "which isn't a result of `eval` or `compare`"
        else:
            continue
        raise UsageError(
            f"--output {output} would overwrite {file}, {what}.",
            fix=f"Give the output another name, or put {file} somewhere else.",
        )


def _ours(file: Path) -> bool:
    """Whether a file is an earlier result, figures or predictions, by what it holds; an empty one is too."""
    if not file.is_file() or not file.stat().st_size:
        return file.is_file()
    if file.suffix == ".json":
        return _figures(file) is not None
    try:
        with file.open(encoding="utf-8") as lines:
            first = json.loads(next(lines))
    except (OSError, ValueError):
        return False
    if not isinstance(first, dict):
        return False
    # What `generate` writes has no scores: those answers may be wanted still.
    sides = [first.get(key) for key in ("a", "b")] if "a" in first else [first]
    return all(isinstance(side, dict) and {"prediction", "scores"} <= set(side) for side in sides)


def _run_at(name: str) -> RunDir | None:
    folder = Path(name).expanduser()
    return open_run(folder) if (folder / "job.yaml").is_file() else None


def _folder(run: RunDir | None) -> Path:
    return run.eval if run is not None else Path("eval")


def _as_jsonl(output: Path) -> Path:
    """OUTPUT.json is where the result goes; the predictions stand beside it, in OUTPUT.jsonl."""
    name = output.name if output.suffix == ".jsonl" else output.name.removesuffix(".json") + ".jsonl"
    return output.with_name(name)


def _free(folder: Path, before: str, questions: Questions, after: str, models: Sequence[str | None]) -> Path:
    """Where the predictions go: the data's name between others, numbered where something else was measured,
    or begun to be.

    `models` are the names that the figures must be of; None stands for the one whose folder this is.
    """
    for number in count(1):
        name = questions.name if number == 1 else f"{questions.name}-{number}"
        predictions = folder / f"{before}{name}{after}.jsonl"
        figures = beside(predictions, ".json")
        if figures.exists():
            ours = _same(figures, questions, models)
        else:
            ours = _begun(predictions, questions, models)
        if ours:
            return predictions
    raise AssertionError("there are always more numbers")


def _begun(predictions: Path, questions: Questions, models: Sequence[str | None]) -> bool:
    """Whether these rows and models may go there: nothing did yet, or an interrupted call on the same."""
    parts = ("",) if len(models) == 1 else tuple(map(part, range(len(models))))
    left = [
        (name, begun)
        for name, own in zip(models, parts, strict=True)
        for begun in begun_for(predictions, own)
    ]
    if not left:
        return not predictions.exists()
    return any(
        begun.facts.get("rows") == questions.sha256[:16]
        and (name is None or _same_model(name, str(begun.facts.get("model"))))
        for name, begun in left
    )


def _same(figures: Path, questions: Questions, models: Sequence[str | None]) -> bool:
    """Whether these figures are of the rows and the models that are asked now."""
    content = _figures(figures)
    if content is None or content.get("rows_sha256") != questions.sha256:
        return False
    sides = [content] if content["kind"] == "evaluation" else sides_of(content)
    named = [str(side.get("model")) if isinstance(side, dict) else "" for side in sides]
    return len(named) == len(models) and all(
        name is None or _same_model(name, before) for name, before in zip(models, named, strict=True)
    )


def _same_model(name: str, other: str) -> bool:
    """Whether two names are one model: the same word, or two ways to the same folder."""
    return name == other or (Path(name).exists() and Path(name).resolve() == Path(other).resolve())


def _figures(file: Path) -> dict[str, Any] | None:
    """What `eval` or `compare` wrote in a file of figures; None where it is anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and content.get("kind") in ("evaluation", "comparison")
    return content if ours else None


def _plain(name: str) -> str:
    """A model's name as a part of a file name."""
    if is_endpoint(name):
        name = name.partition("#")[2].partition("@")[0]
    return Path(name.rstrip("/")).name.replace(":", "-") or "model"


def _together(names: Sequence[str]) -> str:
    """Several models' names as a part of a file name, which a system cuts at 255 bytes."""
    joined = "-".join(map(_plain, names))
    if len(joined.encode()) <= LONGEST:
        return joined
    return joined.encode()[:LONGEST].decode(errors="ignore") + f"-{len(names)}-models"
