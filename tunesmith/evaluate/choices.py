"""Multiple choice by likelihood: which of a row's choices the model finds likeliest as the reply.

Each choice is scored as the whole reply, end token included, on the training's own path; the question is
computed once for all of its choices. Two ways to compare them: by the sum of log-likelihoods, which favours
short choices, and by that sum per UTF-8 byte of the choice (lm-evaluation-harness, `acc_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

from tunesmith.errors import SettingsError
from tunesmith.evaluate.answerers import Base, Watch, tell
from tunesmith.evaluate.metrics.given_choices import choices_of, right_choice
from tunesmith.evaluate.perplexity import RowLoss, reply_losses
from tunesmith.evaluate.row import Choices
from tunesmith.infer.local import LocalModel
from tunesmith.records import Completer, Conversation, Message
from tunesmith.worklog import Worklog

KIND = "choices"


def worklog_choices(
    worklog: Worklog, model: Completer, conversations: Sequence[Conversation], watch: Watch | None
) -> None:
    """Put the losses of all choices of all rows into the worklog, numbered through.

    Raises SettingsError for a model whose likelihoods can't be had.
    """
    if not isinstance(model, LocalModel | Base):
        raise SettingsError(
            f"{model.name} gives answers and no likelihoods, which the metric `choices` needs.",
            fix="Give a model or a run, or the metric `choice`, which reads the letter from the answer.",
        )
    records = choice_records(conversations)
    what, done = f"{model.name}: choices", frozenset(worklog.rows(KIND))
    tell(watch, what, len(done), len(records))
    if len(done) == len(records):
        return
    local = model.tuned if isinstance(model, Base) else model
    with (
        model.tuned.base() if isinstance(model, Base) else nullcontext(),
        closing(reply_losses(local, records, done, sharing=True)) as passes,
    ):
        for losses in passes:
            worklog.append(KIND, {at: asdict(loss) for at, loss in losses.items()})
            tell(watch, what, len(worklog.rows(KIND)), len(records))


def losses_in(worklog: Worklog, conversations: Sequence[Conversation]) -> list[list[RowLoss]]:
    """The losses of each row's choices, which the worklog has."""
    rows: Mapping[int, Mapping[str, Any]] = worklog.rows(KIND)
    return by_row({at: RowLoss(**row) for at, row in rows.items()}, conversations)


def choice_records(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Every row with each of its choices as the reply, numbered through."""
    return [
        replace(row, messages=(*row.prompt.messages, Message("assistant", choice)))
        for row in conversations
        for choice in choices_of(row)
    ]


def by_row(losses: Mapping[int, RowLoss], conversations: Sequence[Conversation]) -> list[list[RowLoss]]:
    """Losses that are numbered through, a list for each row."""
    found, at = [], 0
    for row in conversations:
        count = len(choices_of(row))
        found.append([losses[number] for number in range(at, at + count)])
        at += count
    return found


def right_losses(
    conversations: Sequence[Conversation], losses: Sequence[Sequence[RowLoss]]
) -> list[RowLoss] | None:
    """The loss of each row's right choice; None where a row's answer is none of its choices."""
    right = [(choices_of(row), right_choice(row)) for row in conversations]
    if any(choice is None for _, choice in right):
        return None
    return [
        of_row[choices.index(choice)]
        for (choices, choice), of_row in zip(right, losses, strict=True)
        if choice is not None
    ]


def likeliest(row: Conversation, losses: Sequence[RowLoss], *, per_byte: bool) -> tuple[str, tuple[str, ...]]:
    """The text of the choice with the smallest loss, and the right one's, as a metric's references."""
    sizes = [loss.nll_sum / (max(1, loss.bytes) if per_byte else 1) for loss in losses]
    right = right_choice(row)
    return choices_of(row)[sizes.index(min(sizes))], () if right is None else (right,)


def named_choices(row: Conversation, losses: Sequence[RowLoss] | None) -> Choices | None:
    """The choices that a row gives, if its reference names one of them; `losses` of them where measured."""
    texts = choices_of(row)
    right = right_choice(row) if row.references and len(texts) > 1 else None
    if right is None:
        return None
    return Choices(tuple(texts), texts.index(right), tuple(-loss.nll_sum for loss in losses or ()))
