"""`eval` and `compare` from names to files: models by name, rows from a file, results into the run folder.

    one   a model or run on a file                         -> RUN/eval/<data>.eval.json and .eval.jsonl
    two   two of them, or a run and its own base           -> RUN/eval/<data>.json and .jsonl
Without a run the files go to eval/ in the working folder. Where they hold the figures of other rows or
of another model, <data>-2 is taken, and so on; the same rows measured again write the same files anew, and a
run's report.html.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from tunesmith.data.trained_rows import row_key, trained_rows
from tunesmith.disk import write_json
from tunesmith.errors import ModelError, SettingsError, UsageError
from tunesmith.evaluate.answerers import Base, Note, Watch
from tunesmith.evaluate.compare import PARTS, Comparison, Side, compared
from tunesmith.evaluate.findings.collect import collect
from tunesmith.evaluate.findings.probes import Probes
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.predicted import Predictions
from tunesmith.evaluate.questions import Questions
from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.results import beside
from tunesmith.evaluate.run import AGAIN, Evaluation, measured
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import load
from tunesmith.model import source
from tunesmith.model.load import fingerprint, load_model
from tunesmith.model.source import Source
from tunesmith.records import Conversation, Message
from tunesmith.rundir import RunDir, open_run
from tunesmith.worklog import begun_for, claim, write_lines


@dataclass(frozen=True)
class Result:
    """What came out, as JSON and as objects, and where it was written."""

    content: dict[str, Any]
    measured: Evaluation | Comparison
    file: Path
    report: Path | None


def measure_one(
    name: str,
    questions: Questions,
    metrics: Sequence[Metric],
    sampling: Sampling,
    *,
    output: Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Result:
    """Measure the model or run `name`. `output` is the predictions' file; the result stands beside it."""
    _check_sampling(sampling)
    _check_output(output, questions, (".json",))
    run = _run_at(name)
    who = "" if run else f"{_plain(name)}."
    models = (None if run else name,)
    predictions = _as_jsonl(output) if output else _free(_folder(run), who, questions, ".eval", models)
    with claim(predictions, AGAIN) as held:
        model = load(name, dtype=dtype, template=template, sampling=sampling)
        rows = questions.conversations
        result = measured(held, model, rows, metrics, watch=watch, note=note)
        asked = Probes(held, rows, sides=1, forgetting=False, own=run is not None, watch=watch, note=note)
        asked(0, model, result)
        return _saved(result, questions, run, _learnt((name,), questions), asked)


def measure_predictions(
    predictions: Predictions,
    questions: Questions,
    metrics: Sequence[Metric],
    *,
    output: Path | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Result:
    """Score answers that are there already, without any model; the result goes to eval/ or to `output`."""
    _check_output(output, questions, (".json",))
    scored = _as_jsonl(output) if output else _free(Path("eval"), "", questions, ".eval", (predictions.name,))
    with claim(scored, AGAIN) as held:
        result = measured(held, predictions, questions.conversations, metrics, watch=watch, note=note)
        return _saved(replace(result, seconds=None), questions, None, [], None)


def measure_two(
    a: str,
    b: str | None,
    questions: Questions,
    metrics: Sequence[Metric],
    sampling: Sampling,
    *,
    output: Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    forgetting: bool | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Result:
    """Measure A and B on the same rows; with one name, a run, its base is A and the run B.

    An adapter's base is the same load with the adapter off. A run of full or freeze tuning has no base
    inside: the base is loaded by itself, and asked with the run's template. `forgetting`: ask both the
    general questions too; None: where B is a run.

    Raises UsageError if there is one name and it is no run, ModelError if its base has changed since.
    """
    _check_sampling(sampling)
    _check_output(output, questions, (".json",))
    if b is None:
        run: RunDir | None = _run_of(a)
        before, after = "", ""
        models: tuple[str | None, ...] = (None, None)
    else:
        run = _run_at(b)
        before, after = ("", f".vs-{_plain(a)}") if run else (f"{_plain(a)}-{_plain(b)}.", "")
        models = (a, None if run else b)
    predictions = _as_jsonl(output) if output else _free(_folder(run), before, questions, after, models)
    with claim(predictions, AGAIN) as held:
        sides: tuple[Side, Side]
        if b is None:
            sides = _base_and_tuned(a, dtype, template, sampling)
        else:
            # Loaded one after the other: two large models needn't fit at once.
            later = partial(load, dtype=dtype, template=template, sampling=sampling)
            sides = partial(later, a), partial(later, b)
        rows = questions.conversations
        tuned = run is not None
        general = tuned if forgetting is None else forgetting
        asked = Probes(held, rows, sides=2, forgetting=general, own=tuned, watch=watch, note=note)
        result = compared(held, *sides, rows, metrics, watch=watch, note=note, also=asked)
        return _saved(result, questions, run, _learnt((a,) if b is None else (a, b), questions), asked)


def _base_and_tuned(name: str, dtype: str, template: str | None, sampling: Sampling) -> tuple[Side, Side]:
    tuned = load(name, dtype=dtype, template=template, sampling=sampling)
    run = _run_of(name)
    base_name = str((run.job().get("base") or {}).get("name") or "base")
    if tuned.adapter is not None:
        return Base(tuned, base_name), tuned

    found = _base_of(run, base_name)
    return lambda: replace(tuned, name=base_name, model=load_model(found, tuned.device), run=None), tuned


def _base_of(run: RunDir, name: str) -> Source:
    """The base that a run was tuned from, as its fingerprint tells; no weights are read into memory."""
    facts = run.job().get("base") or {}
    path = str(facts.get("path") or "")
    found = source.resolve(path if path and Path(path).exists() else name, facts.get("revision"))
    expected = facts.get("fingerprint")
    if expected and (now := fingerprint(found)) != expected:
        raise ModelError(
            f"{run.path} was tuned from another base than what {name} is now (fingerprint "
            f"{str(expected)[:12]}, now {now[:12]}): the difference would not be that of the training.",
            fix=f"Put back the base's files as they were, or compare with a model by name: "
            f"tunesmith compare MODEL {run.path} --data FILE.",
        )
    return found


def _saved(
    result: Evaluation | Comparison,
    questions: Questions,
    run: RunDir | None,
    learnt: list[str],
    asked: Probes | None,
) -> Result:
    write_lines(result.output, result.lines())
    content = {**result.to_json(), "data": questions.path, "rows_sha256": questions.sha256}
    sides = [result.a, result.b] if isinstance(result, Comparison) else [result]
    content["findings"] = collect(sides, questions.conversations, run, asked)
    content["notes"] = [*content.get("notes", []), *_about_documents(questions), *learnt]
    file = beside(result.output, ".json")
    write_json(file, content)
    report = write_report(run) if run is not None and file.parent == run.eval else None
    return Result(content, result, file, report)


def _about_documents(questions: Questions) -> list[str]:
    """Where rows say which document they are from, intervals are wider, and people should know why."""
    documents = {row.meta.get("document", "") for row in questions.conversations}
    if "" in documents or len(documents) == len(questions.conversations):
        return []
    return [
        f"The {len(questions.conversations)} rows come from {len(documents)} documents: intervals and tests "
        "are over documents."
    ]


def _learnt(names: Sequence[str], questions: Questions) -> list[str]:
    """A sentence for each run that has learnt some of these very rows, question and answer."""
    told = []
    for name in dict.fromkeys(names):
        known = trained_rows(Path(name))
        count = sum(any(key in known for key in _keys(row)) for row in questions.conversations)
        if count:
            told.append(
                f"{count} of these {len(questions.conversations)} rows {'was' if count == 1 else 'were'} "
                f"trained on by {name}: figures on them show what it knows by heart. "
                "Rows that it has never seen tell more."
            )
    return told


def _keys(row: Conversation) -> list[str]:
    """The keys that the row has as a training row, with each of its references as the answer."""
    return [
        row_key(replace(row, messages=(*row.messages, Message("assistant", reference))))
        for reference in row.references
    ]


def _check_sampling(sampling: Sampling) -> None:
    if sampling.answers > 1:
        raise SettingsError(
            f"num_return_sequences {sampling.answers} gives several answers to a prompt; one is scored.",
            fix="Leave num_return_sequences out.",
        )


def _check_output(output: Path | None, questions: Questions, endings: Sequence[str]) -> None:
    """Before hours of work: what will be written for `output` replaces nothing but earlier results."""
    if output is None:
        return
    if output.is_dir():
        raise UsageError(
            f"--output {output} is a folder.", fix=f"Give a file in it: {output / 'predictions.jsonl'}."
        )
    predictions = _as_jsonl(output)
    for file in (predictions, *(beside(predictions, ending) for ending in endings)):
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
    # What `generate` writes has no scores: those answers may be wanted still.
    return (
        isinstance(first, dict) and "prediction" in first and ("scores" in first or {"a", "b"} <= set(first))
    )


def _run_of(name: str) -> RunDir:
    run = _run_at(name)
    if run is None:
        raise UsageError(
            f"{name} isn't the folder of a run, so it has no base to be compared with.",
            fix="Give a run (`tunesmith runs list`), or two models: tunesmith compare A B --data FILE.",
        )
    return run


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
    parts = ("",) if len(models) == 1 else PARTS
    left = [
        (name, begun)
        for name, part in zip(models, parts, strict=True)
        for begun in begun_for(predictions, part)
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
    sides = [content] if content["kind"] == "evaluation" else [content.get("a"), content.get("b")]
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
    return Path(name.rstrip("/")).name.replace(":", "-") or "model"
