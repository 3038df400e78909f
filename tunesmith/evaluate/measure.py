"""`eval` and `compare` from names to files: models by name, rows from a file, results into the run folder.

Where the files go is in outputs.py, who is compared in sides.py. A run's report.html is written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.trained_rows import row_key, trained_rows
from tunesmith.disk import write_json
from tunesmith.errors import SettingsError, UsageError
from tunesmith.evaluate import outputs
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.compare import Comparison, check_count, compared
from tunesmith.evaluate.cost import Meter
from tunesmith.evaluate.findings.collect import collect
from tunesmith.evaluate.findings.probes import Probes
from tunesmith.evaluate.left_out import failure_notes
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.metrics.given_choices import about_letters
from tunesmith.evaluate.predicted import Predictions, is_predictions, read_predictions
from tunesmith.evaluate.questions import Questions
from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.results import beside
from tunesmith.evaluate.run import AGAIN, Evaluation, answers_are_asked, measured
from tunesmith.evaluate.sides import sides_of
from tunesmith.infer.answerer import answerer
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import check_endpoints, is_endpoint
from tunesmith.records import Conversation, Message
from tunesmith.rundir import RunDir
from tunesmith.worklog import claim, write_lines


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
    check_endpoints((name,), sampling, dtype=dtype, template=template)
    outputs.check(output, questions)
    place = outputs.of_one(output, name, questions)
    with claim(place.predictions, AGAIN) as held:
        model = answerer(name, dtype=dtype, template=template, sampling=sampling, say=note)
        meter = Meter(model, watch)
        rows = questions.conversations
        result = measured(held, model, rows, metrics, watch=meter, note=note)
        result = replace(result, facts={**result.facts, **meter.facts()})
        tuned = place.run is not None
        asked = Probes(held, rows, sides=1, forgetting=False, own=tuned, watch=watch, note=note)
        asked(0, model, result)
        told = [*about_letters(rows, metrics), *_learnt((name,), questions)]
        return _saved(result, questions, place.run, told, asked)


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
    outputs.check(output, questions)
    place = outputs.of_predictions(output, predictions.name, questions)
    with claim(place.predictions, AGAIN) as held:
        result = measured(held, predictions, questions.conversations, metrics, watch=watch, note=note)
        return _saved(result, questions, None, [*predictions.told], None)


def measure_several(
    names: Sequence[str],
    questions: Questions,
    metrics: Sequence[Metric],
    sampling: Sampling,
    *,
    with_base: bool = False,
    forgetting: bool | None = None,
    output: Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Result:
    """Measure models, runs and files of answers on the same rows, the first one being the reference of all.

    A run alone, or `with_base`, is measured against the base it was tuned from, which is then the first side.
    Sides over one base share a load (sides.py). `forgetting`: ask the first and the last side the general
    questions too; None: where the last is a run, the first on this machine, and a metric looks at answers.

    Raises UsageError where there is no base, or the runs have several; ModelError if one has changed since.
    """
    _check_sampling(sampling)
    check_endpoints(names, sampling, dtype=dtype, template=template)
    with_base = with_base or len(names) == 1
    check_count(len(names) + with_base)
    ends = {names[-1], *([] if with_base else names[:1])}
    needing = for_models_alone(sampling.given(), dtype, template)
    given = _given(names, questions, needing, asked=ends if forgetting else set())
    outputs.check(output, replace(questions, files=(*questions.files, *given)))
    sides = sides_of(
        names, given, with_base=with_base, dtype=dtype, template=template, sampling=sampling, note=note
    )
    place = outputs.of_comparison(output, names, sides.names, questions)
    rows, tuned = questions.conversations, place.run is not None
    if forgetting is None:
        # Nobody pays for questions unasked, and where nothing is answered, nothing else is either.
        here = not is_endpoint(sides.names[0]) and sides.names[0] not in given
        forgetting = tuned and here and answers_are_asked(metrics)
    with claim(place.predictions, AGAIN) as held:
        asked = Probes(
            held, rows, sides=len(sides.names), forgetting=forgetting, own=tuned, watch=watch, note=note
        )
        result = compared(
            held, sides.sides, rows, metrics, order=sides.order, watch=watch, note=note, also=asked
        )
        told = [told for predictions in given.values() for told in predictions.told]
        asked_names = [name for name in names if name not in given]
        told += about_letters(rows, metrics) if asked_names else []
        return _saved(result, questions, place.run, [*told, *_learnt(asked_names, questions)], asked)


def for_models_alone(sampling: Iterable[str], dtype: str, template: str | None) -> list[str]:
    """The names of settings that were given and change nothing about answers that are there already."""
    return [*sampling, *([] if template is None else ["template"]), *(["dtype"] if dtype != "auto" else [])]


def _given(
    names: Sequence[str], questions: Questions, idle: Sequence[str], *, asked: set[str]
) -> dict[str, Predictions]:
    """The answers of those names that are files. `idle` are settings that need a model, `asked` those sides
    that are to answer general questions.

    Raises UsageError where they can't be compared as asked, and what reading them raises.
    """
    files = [name for name in names if is_predictions(name)]
    if files and len(names) == 1:
        raise UsageError(
            f"{files[0]} holds answers, and has no base to be compared with.",
            fix=f"Name a second side; or score it: tunesmith eval --predictions {files[0]} --data FILE.",
        )
    if asked & {*files}:
        raise UsageError("A file of answers can't be asked general questions.", fix="Leave out --forgetting.")
    if len(files) == len(names) and idle:
        raise UsageError(
            f"All answers are there already: {', '.join(idle)} would change nothing.", fix="Leave it out."
        )
    return {name: read_predictions(str(Path(name).expanduser()), questions)[1] for name in files}


def _saved(
    result: Evaluation | Comparison,
    questions: Questions,
    run: RunDir | None,
    told: list[str],
    asked: Probes | None,
) -> Result:
    write_lines(result.output, result.lines())
    content = {**result.to_json(), "data": questions.path, "rows_sha256": questions.sha256}
    sides = result.sides if isinstance(result, Comparison) else [result]
    content["findings"] = collect(sides, questions.conversations, run, asked)
    failed = failure_notes(result) if isinstance(result, Evaluation) else []
    general = [*failed, *_about_documents(questions), *told]
    for one in (content, *content.get("comparisons", ())):
        one["notes"] = [*one.get("notes", []), *general]
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
