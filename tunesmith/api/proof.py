"""What proves: figures of one model, differences of several, tests by people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.api.answering import generate
from tunesmith.api.folders import name_of
from tunesmith.errors import UsageError
from tunesmith.evaluate import measure
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.blind import new as blind
from tunesmith.evaluate.measure import Result
from tunesmith.evaluate.metrics import Named
from tunesmith.evaluate.predicted import read_predictions
from tunesmith.evaluate.questions import Questions, choose_metrics, read_questions
from tunesmith.infer.config import Sampling
from tunesmith.infer.predictions import Summary
from tunesmith.records import Conversation
from tunesmith.rundir import RunDir
from tunesmith.settings import build


def evaluate(
    model: str | Path | RunDir | None = None,
    data: str | Questions | None = None,
    *,
    predictions: str | None = None,
    references: str | None = None,
    metrics: Named | Sequence[Named] | None = None,
    by: str | Sequence[str] = (),
    document: str | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
    **sampling: Any,
) -> Result:
    """Loss, perplexity and metrics of one model on rows with answers; `.content` is what `--json` prints.

    `data` is a file, or rows that `read_questions` gave. `references` is a file with the answers, a line a
    row, where the rows lack them. `metrics` are names, FILE.py:function, or functions (prediction,
    references, prompt) -> a number. `by` names columns whose values get figures of their own, `document` the
    one that says which document a row is from. Answers are greedy unless `sampling` says otherwise.
    `predictions` is a file of answers (id, prompt, prediction, references) that is scored without a model.
    `watch(what, done, rows)` is told of each row, `note` what an interrupted call had done already.
    """
    if predictions is not None:
        if idle := measure.for_models_alone(sampling, dtype, template):
            raise UsageError(
                f"The answers are there already: {', '.join(idle)} would change nothing.", fix="Leave it out."
            )
        rows = read_questions(data, references, limit) if isinstance(data, str) else data
        questions, answers = read_predictions(predictions, rows, by=_listed(by), document=document)
        return measure.measure_predictions(
            answers, questions, choose_metrics(metrics, questions),
            output=_path(output), watch=watch, note=note,
        )  # fmt: skip
    if model is None or data is None:
        raise UsageError("There is nothing to measure.", fix="Give a model and data, or predictions=FILE.")
    questions = data if isinstance(data, Questions) else _questions(data, references, limit, by, document)
    chosen = choose_metrics(metrics, questions)
    return measure.measure_one(
        name_of(model), questions, chosen, build(Sampling, sampling),
        output=_path(output), dtype=dtype, template=template, watch=watch, note=note,
    )  # fmt: skip


def compare(
    a: str | Path | RunDir,
    b: str | Path | RunDir | None = None,
    *more: str | Path | RunDir,
    data: str | Questions,
    with_base: bool = False,
    references: str | None = None,
    metrics: Named | Sequence[Named] | None = None,
    by: str | Sequence[str] = (),
    document: str | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    forgetting: bool | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
    **sampling: Any,
) -> Result:
    """Models and runs on the same rows, with paired differences from the first; a run alone against its base.

    `with_base` puts the base that the runs were tuned from before all that are named. Models over one base
    share a load. `forgetting`: ask the first and the last sixty general questions too; by default where the
    last is a run and the first on this machine. `.content` is what `--json` prints, `.measured.rows()`
    everybody's answers, row by row.
    `watch(what, done, rows)` is told of each row, `note` what an interrupted call had done already.
    Raises UsageError where there is no base, or the runs have several, and what `evaluate` raises.
    """
    questions = data if isinstance(data, Questions) else _questions(data, references, limit, by, document)
    chosen = choose_metrics(metrics, questions)
    names = [name_of(model) for model in (a, b, *more) if model is not None]
    return measure.measure_several(
        names, questions, chosen, build(Sampling, sampling), with_base=with_base, forgetting=forgetting,
        output=_path(output), dtype=dtype, template=template, watch=watch, note=note,
    )  # fmt: skip


def blind_new(
    a: str | Path | RunDir,
    b: str | Path | RunDir,
    *,
    data: str | None = None,
    output: str | Path | None = None,
    items: int = blind.ITEMS,
    repeats: float = blind.REPEATS,
    title: str = "",
    ask: str = "",
    references: bool = False,
    dtype: str = "auto",
    template: str | None = None,
    watch: Callable[[Summary], None] | None = None,
    **sampling: Any,
) -> blind.Made:
    """A blind test of two models, runs or files of answers (.jsonl), sealed, in the folder `.test.path`.

    Models answer `items` rows of `data`, one model after the other; a call that was interrupted is continued
    by the same call. `repeats` is the share of items that are shown again, `ask` the question to raters;
    `references` shows them the rows' own answers. Raises DataError, SettingsError, UsageError, RunError.
    """
    settings = build(Sampling, sampling).given()
    asked = {"dtype": dtype, "template": template, **settings}
    request = blind.Request(name_of(a), name_of(b), data, items, repeats, title, ask, references, asked)

    def answer(name: str, prompts: Sequence[Conversation], file: Path) -> object:
        return generate(
            name, prompts, file, existing="resume", dtype=dtype, template=template, watch=watch, **settings
        )

    return blind.new(request, answer, output=_path(output))


def _questions(
    data: str, references: str | None, limit: int | None, by: str | Sequence[str], document: str | None
) -> Questions:
    return read_questions(data, references, limit, by=_listed(by), document=document)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
