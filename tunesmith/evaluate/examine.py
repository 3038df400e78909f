"""`train.evaluate`: while a model is trained, it answers held-out rows, and metrics score the answers.

The training knows nothing of metrics: it is handed an `Examination` (train/examine.py), which this makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.data.check import Dataset
from tunesmith.data.prompts import read_prompts
from tunesmith.data.read import files_of
from tunesmith.data.template import Renderer
from tunesmith.device import Device
from tunesmith.errors import DataError
from tunesmith.evaluate.choices import by_row, choice_records
from tunesmith.evaluate.figures import value
from tunesmith.evaluate.metrics import Metric, is_empty, resolve
from tunesmith.evaluate.metrics.scorable import check_scorable
from tunesmith.evaluate.perplexity import RowLoss, reply_losses
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.run import scored
from tunesmith.evaluate.wanted import chosen_by
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel
from tunesmith.records import Completion, Conversation
from tunesmith.train.config import EvaluateSettings, Job
from tunesmith.train.examine import Aim, Answered, Examined

NAME = "the model in training"


@dataclass(frozen=True)
class Answers:
    """An `Examination`: the rows that are asked, and the metrics that score what comes."""

    rows: Sequence[Conversation]
    metrics: Sequence[Metric]
    settings: EvaluateSettings
    aim: Aim = field(default_factory=Aim)
    files: Mapping[str, str] = field(default_factory=dict)

    def examine(self, model: PreTrainedModel, renderer: Renderer, device: Device) -> Examined:
        """Greedy answers, their scores and figures. Raises GenerateError for prompts that leave no room."""
        sampling = Sampling.model_validate({"max_new_tokens": self.settings.max_new_tokens, "seed": 0})
        local = LocalModel(
            NAME, model, renderer, device, sampling=sampling, batch_size=self.settings.batch_size
        )
        answers: list[Completion | None] = [None] * len(self.rows)
        if answering := any(metric.evidence == "answer" for metric in self.metrics):
            answers = [found[0] for found in local.complete([row.prompt for row in self.rows])]
        choices: list[list[RowLoss]] | None = None
        if any(metric.evidence != "answer" for metric in self.metrics):
            losses: dict[int, RowLoss] = {}
            for done in reply_losses(local, choice_records(self.rows), sharing=True):
                losses |= done
            choices = by_row(losses, self.rows)
        rows = [
            scored(row, answers[at], self.metrics, choices=choices[at] if choices else None)
            for at, row in enumerate(self.rows)
        ]
        figures = {metric.name: value(metric, rows) for metric in self.metrics}
        empty = sum(is_empty(row.completion.text) for row in rows) if answering else 0
        return Examined(figures, [_answered(row) for row in rows], empty)


def examination(job: Job, valid: Dataset | None) -> Answers:
    """What `train.evaluate` asks for.

    Raises SettingsError for metrics that aren't known or a `train.best` that isn't one of them, DataError
    naming the rows that a metric can't be had of, MissingExtraError.
    """
    settings = job.train.evaluate
    assert settings is not None
    rows, files = _rows(settings, valid)
    metrics = resolve(settings.metrics, [row.references for row in rows])
    _check(rows, metrics, settings.prompts or "data.valid")
    best = None if job.train.by_loss else chosen_by(str(job.train.best), settings, metrics)
    aim = Aim() if best is None else Aim(best.name, best.better == "higher")
    return Answers(rows, metrics, settings, aim, files)


def _rows(settings: EvaluateSettings, valid: Dataset | None) -> tuple[list[Conversation], dict[str, str]]:
    if settings.prompts is not None:
        rows, names = read_prompts(settings.prompts), files_of(settings.prompts)
        files = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names}
        return rows[: settings.limit], files
    records = [] if valid is None else [r for r in valid.records if isinstance(r, Conversation) and r.answer]
    if not records:
        raise DataError(
            "train.evaluate has no rows: none of data.valid is a conversation with an answer.",
            fix="Give rows with answers: train.evaluate.prompts=FILE.",
        )
    chosen = records[: settings.limit]
    return [replace(r.prompt, references=(r.answer or "",)) for r in chosen], {}


def _check(rows: Sequence[Conversation], metrics: Sequence[Metric], source: str) -> None:
    """Raise DataError for rows that a metric can't be had of: without references, or without choices."""
    if not rows:
        raise DataError(f"{source} holds no rows.", fix="Give a file with at least one row.")
    needing = [metric.name for metric in metrics if metric.needs_references]
    bare = [row for row in rows if not any(each.strip() for each in row.references)]
    if needing and bare:
        raise DataError(
            f"{len(bare)} of {len(rows)} rows of {source} have no answer to compare with, which "
            f"{', '.join(needing)} (train.evaluate.metrics) needs.",
            details=[str(row.origin) for row in bare],
            fix="Add the answers to these rows, or leave these metrics out.",
        )
    check_scorable(metrics, rows)


def _answered(row: RowResult) -> Answered:
    reference = row.references[0] if row.references else None
    return Answered(row.prompt, row.completion.text, reference, dict(row.scores))
