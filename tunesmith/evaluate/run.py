"""Measure one model on rows with answers: its loss, its own answers, their scores.

Where all metrics look at choices by likelihood, nothing is answered: the prediction is the likeliest one.

Losses and answers go to a worklog as they come (OUTPUT.partial, worklog.py), so that hours of work outlive a
kill; the same work continues it. Scores are made of them at the end.
"""

from __future__ import annotations

import time
from collections.abc import Container, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.prompts import prompts_sha256
from tunesmith.device import peak_memory
from tunesmith.errors import GenerateError
from tunesmith.evaluate.answerers import Base, Note, Watch, tell
from tunesmith.evaluate.choices import likeliest, losses_in, named_choices, right_losses, worklog_choices
from tunesmith.evaluate.cost import spent
from tunesmith.evaluate.failures import Failed, check_some, failed_rows
from tunesmith.evaluate.figures import figure, losses_of, settled
from tunesmith.evaluate.metrics import Metric, is_empty
from tunesmith.evaluate.metrics.variety import length
from tunesmith.evaluate.perplexity import Loss, RowLoss, answer_losses, intervals, total
from tunesmith.evaluate.predicted import Predictions
from tunesmith.evaluate.row import RowResult
from tunesmith.infer.local import LocalModel
from tunesmith.infer.predictions import answered
from tunesmith.infer.remote import RemoteModel
from tunesmith.records import Completer, Completion, Conversation
from tunesmith.worklog import Claim, Worklog, claim, write_lines

ANSWERS, LOSSES = "answers", "losses"
AGAIN = "The same command goes on."


@dataclass
class Evaluation:
    """One model's rows and figures. `seconds` is the wall-clock time of answering, None if it was before.

    `rows` are those that were answered; those whose call failed are in `failed`, by their place among all. Of
    a comparison, `apart` are rows that another model failed on: they count in the costs alone.
    """

    model: str
    rows: list[RowResult]
    metrics: tuple[Metric, ...]
    loss: Loss | None
    seconds: float | None
    facts: Mapping[str, Any]
    output: Path
    failed: Mapping[int, Failed] = field(default_factory=dict)
    apart: Sequence[RowResult] = ()

    @property
    def n(self) -> int:
        return len(self.rows)

    def lines(self) -> list[dict[str, Any]]:
        """What stands in `output`: a line a row."""
        lines = [row.to_json() for row in self.rows]
        for at, row in sorted(self.failed.items()):
            lines.insert(at, row.to_json())
        return lines

    def scores(self, metric: str) -> list[float]:
        """One score a row."""
        return [row.scores[metric] for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """{"n", "metrics": {name: {value, low, high}}, "loss", "perplexity", …, "intervals": {"loss": {value,
        low, high}, …}, "groups": {column: {value: {"n", "metrics", …}}}}; JSON knows no None here: figures
        that could not be had are left out.
        """
        metrics = self.metrics
        content: dict[str, Any] = {
            "kind": "evaluation",
            "model": self.model,
            "n": self.n,
            "metrics": _figures(metrics, self.rows),
        }
        if signatures := {m.name: m.signature for m in self.metrics if m.signature}:
            content["signatures"] = signatures
        if groups := grouped(self.rows):
            content["groups"] = {
                column: {
                    value: {"n": len(rows), "metrics": _figures(metrics, rows), **_bare_loss(rows)}
                    for value, rows in values.items()
                }
                for column, values in groups.items()
            }
        if self.loss is not None:
            content |= {"loss": self.loss.loss, "perplexity": self.loss.perplexity}
            content |= {"bits_per_byte": self.loss.bits_per_byte} if self.loss.bits_per_byte else {}
            content |= {"label_tokens": self.loss.tokens}
            bounds = intervals(losses_of(self.rows))
            content["intervals"] = {name: interval.to_json() for name, interval in bounds.items()}
        return content | {
            **(self._of_answers() if all(row.answered for row in self.rows) else {}),
            "predictions": str(self.output),
            **self.facts,
        }

    def _of_answers(self) -> dict[str, Any]:
        """What answers are like besides their scores."""
        texts = [row.completion.text for row in self.rows]
        return {
            "empty": sum(map(is_empty, texts)),
            "cut": sum(row.completion.finish == "length" for row in self.rows),
            # The same characters as the metric `length` counts: of one thing there is one number.
            "mean_length": sum(length(text, ()) for text in texts) / self.n,
            **spent([row.completion for row in (*self.rows, *self.apart)], self.seconds),
            **({"failed": len(self.failed)} if self.failed else {}),
        }


def evaluate(
    model: Completer,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    *,
    output: Path,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Evaluation:
    """Measure `model` on conversations with references; its answers are written to `output` (JSONL).

    A line has id, prompt, prediction, references, scores, finish, tokens, seconds, and nll and label_tokens
    where the model is a local one; choices where the row gives them and its reference names one, and
    log_likelihoods of them where they were measured. `note` hears what an earlier call had done. Raises what
    the model raises, and RunError if the disk can't be written or another process writes `output`.
    """
    with claim(output, AGAIN) as held:
        result = measured(held, model, conversations, metrics, watch=watch, note=note)
        write_lines(output, result.lines())
    return result


def measured(
    held: Claim,
    model: Completer,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    *,
    part: str = "",
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Evaluation:
    """`evaluate`, without writing the output, which is held already; `part` tells several models apart."""
    facts = {**made_by(model), "rows": prompts_sha256(conversations)[:16]}
    worklog, other = held.worklog(facts, len(conversations), part=part)
    if other:
        note(other)
    if not worklog.empty:
        note(f"{model.name}: {worklog.size()} were there already.")
    answering = answers_are_asked(metrics)
    if answering:
        _worklog_losses(worklog, model, conversations, watch)
    choices = None
    if any(metric.evidence != "answer" for metric in metrics):
        worklog_choices(worklog, model, conversations, watch)
        choices = losses_in(worklog, conversations)
    before = sum(row.get("spent", row["seconds"]) for row in worklog.rows(ANSWERS).values())
    begun = time.monotonic()
    if answering:
        worklog_answers(worklog, model, conversations, watch)
        check_some(model.name, worklog.rows(ANSWERS))
    # Answers of a file took their time elsewhere.
    timed = answering and not isinstance(model, Predictions)
    seconds = before + time.monotonic() - begun if timed else None
    # The loss of "B" says nothing where B's text is what was scored.
    losses = right_losses(conversations, choices) if choices and not answering else _losses(worklog)
    answers = [_completion(row) for _, row in sorted(worklog.rows(ANSWERS).items())] if answering else None
    rows = [
        scored(
            row,
            answers[at] if answers is not None else None,
            metrics,
            losses[at] if losses else None,
            choices[at] if choices else None,
        )
        for at, row in enumerate(conversations)
        if answers is None or answers[at].finish != "error"
    ]
    loss = total(losses) if losses else None
    failed = failed_rows(conversations, answers) if answers is not None else {}
    # Asked again they may come; what stands in a file of predictions stays as it is.
    worklog.unfinished = bool(failed) and isinstance(model, RemoteModel)
    metrics = settled(metrics, [rows])
    return Evaluation(model.name, rows, tuple(metrics), loss, seconds, _facts(model), held.output, failed)


def answers_are_asked(metrics: Sequence[Metric]) -> bool:
    """Whether the model has to answer: not where all metrics look at choices by likelihood."""
    return not metrics or any(metric.evidence == "answer" for metric in metrics)


def grouped(rows: Sequence[RowResult]) -> dict[str, dict[str, list[RowResult]]]:
    """Rows by column and value, values in the order in which they first come."""
    found: dict[str, dict[str, list[RowResult]]] = {}
    for row in rows:
        for column, value in row.groups.items():
            found.setdefault(column, {}).setdefault(value, []).append(row)
    return found


def _figures(metrics: Sequence[Metric], rows: Sequence[RowResult]) -> dict[str, dict[str, float]]:
    return {metric.name: figure(metric, rows).to_json() for metric in metrics}


def _bare_loss(rows: Sequence[RowResult]) -> dict[str, float]:
    losses = [row.loss for row in rows if row.loss is not None]
    if not losses or not sum(loss.tokens for loss in losses):
        return {}
    found = total(losses)
    bits = {"bits_per_byte": found.bits_per_byte} if found.bits_per_byte else {}
    return {"loss": found.loss, "perplexity": found.perplexity, **bits}


def _losses(worklog: Worklog) -> list[RowLoss] | None:
    return [RowLoss(**row) for _, row in sorted(worklog.rows(LOSSES).items())] or None


def _worklog_losses(
    worklog: Worklog, model: Completer, conversations: Sequence[Conversation], watch: Watch | None
) -> None:
    """Before any answer: rows that are too long are then known at once, and not after an hour."""
    if not isinstance(model, LocalModel | Base):
        return
    what, done = f"{model.name}: loss", frozenset(worklog.rows(LOSSES))
    tell(watch, what, len(done), len(conversations))
    if len(done) == len(conversations):
        return
    local = model.tuned if isinstance(model, Base) else model
    with (
        model.tuned.base() if isinstance(model, Base) else nullcontext(),
        closing(answer_losses(local, conversations, done)) as passes,
    ):
        for losses in passes:
            worklog.append(LOSSES, {at: asdict(loss) for at, loss in losses.items()})
            tell(watch, what, len(worklog.rows(LOSSES)), len(conversations))


def worklog_answers(
    worklog: Worklog, model: Completer, conversations: Sequence[Conversation], watch: Watch | None
) -> None:
    what, done = f"{model.name} answers", answered(worklog.rows(ANSWERS))
    tell(watch, what, len(done), len(conversations))
    if len(done) == len(conversations):
        return
    begun = time.monotonic()
    # Closed here and now: an adapter that it has switched off must be on for what follows.
    with closing(_answered(model, conversations, done)) as batches:
        for batch in batches:
            # Not the answers' own seconds: of an endpoint many calls are under way at once.
            spent, begun = (time.monotonic() - begun) / len(batch), time.monotonic()
            worklog.append(ANSWERS, {at: {**asdict(one), "spent": spent} for at, one in batch.items()})
            tell(watch, what, len(answered(worklog.rows(ANSWERS))), len(conversations))


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(**{name: value for name, value in row.items() if name != "spent"})


def _answered(
    model: Completer, conversations: Sequence[Conversation], done: Container[int]
) -> Generator[dict[int, Completion]]:
    """Answers by row, as many at a time as are done at once."""
    prompts = [conversation.prompt for conversation in conversations]
    if isinstance(model, LocalModel | Base | RemoteModel):
        with closing(model.complete_batches(prompts, done)) as batches:
            for batch in batches:
                yield {at: _only(answers, model, prompts[at]) for at, answers in batch.items()}
        return
    left = [at for at in range(len(prompts)) if at not in done]
    answers = model.complete([prompts[at] for at in left])
    try:
        for at in left:
            yield {at: _only(next(answers, None), model, prompts[at])}
    finally:
        if isinstance(answers, Generator):
            answers.close()


def scored(
    conversation: Conversation,
    completion: Completion | None,
    metrics: Sequence[Metric],
    loss: RowLoss | None = None,
    choices: Sequence[RowLoss] | None = None,
) -> RowResult:
    """A row with its scores. `completion` None: nothing was answered, as no metric looks at answers."""
    scores = {}
    said, wanted = "", conversation.references
    chosen: str | None = None  # by the first metric of choices
    for metric in metrics:
        if metric.evidence == "answer":
            assert completion is not None
            said, wanted = completion.text, conversation.references
        else:
            assert choices is not None
            said, wanted = likeliest(conversation, choices, per_byte=metric.evidence == "likeliest_per_byte")
            chosen = said if chosen is None else chosen
        scores[metric.name] = metric.score(said, wanted, conversation.last_asked)
    return RowResult(
        conversation.key,
        conversation.question,
        conversation.references,
        completion if completion is not None else Completion(chosen or "", "stop", 0, 0),
        scores,
        loss,
        conversation.meta.get("groups", {}),
        conversation.meta.get("document", ""),
        answered=completion is not None,
        choices=named_choices(conversation, choices),
    )


def _only(answers: list[Completion] | None, model: Completer, conversation: Conversation) -> Completion:
    if answers is None:
        raise GenerateError(f"{model.name} gave no answer to {conversation.origin}.", fix="Run it again.")
    if len(answers) != 1:
        raise GenerateError(
            f"{model.name} gives {len(answers)} answers to each prompt; one can be scored.",
            fix="Leave num_return_sequences out.",
        )
    return answers[0]


def made_by(model: Completer) -> dict[str, Any]:
    """All of a model that decides what it answers."""
    if isinstance(model, Base):
        return {**model.tuned.facts(), "model": model.name, "adapter": "off"}
    if isinstance(model, LocalModel | RemoteModel | Predictions):
        return model.facts()
    return {"model": model.name}


def _facts(model: Completer) -> dict[str, Any]:
    local = model.tuned if isinstance(model, Base) else model
    if isinstance(local, RemoteModel):
        return {"sampling": local.sampling.given()}
    if not isinstance(local, LocalModel):
        return {}
    return {
        "sampling": local.sampling.given(),
        "template": {"name": local.renderer.name, "sha256": local.renderer.sha256},
        "device": local.device.name,
        "dtype": str(local.device.dtype).removeprefix("torch."),
        "peak_memory_bytes": peak_memory(local.device.kind),
    }
