"""What models are asked besides the rows: general questions, and how likely they find their own answers.

It is done when all answers are in. Each has a worklog of its own beside the output, and is continued after a
kill as answers are.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace

import torch

from tunesmith.data.prompts import prompts_sha256
from tunesmith.errors import DataError, GenerateError, TemplateError
from tunesmith.evaluate.answerers import Base, Note, Watch, tell
from tunesmith.evaluate.compare import Side
from tunesmith.evaluate.findings.changed import lowest, ranking
from tunesmith.evaluate.findings.general import GENERAL, NEW_TOKENS, general_rows
from tunesmith.evaluate.perplexity import RowLoss, reply_losses
from tunesmith.evaluate.run import Evaluation, measured
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel
from tunesmith.records import Completer, Conversation, Message
from tunesmith.worklog import Claim

WORST = 50
"""Rows whose own answers are looked at: the lowest-scoring ones."""
GENERAL_PART, OWN_PART = ".general", ".own"
"""What tells these worklogs of an output from those of the rows."""
OWN = "losses"


@dataclass(frozen=True)
class Probes:
    """What came of it.

    `general`: each side's answers to the general questions, or nothing; `own`: the loss of the last side's
    own answers, by row.
    """

    general: tuple[Evaluation, ...] = ()
    own: Mapping[int, RowLoss] = field(default_factory=dict)


def probe(
    held: Claim,
    sides: Sequence[Side],
    conversations: Sequence[Conversation],
    last: Evaluation,
    *,
    forgetting: bool,
    own: bool,
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Probes:
    """Ask every side the general questions (`forgetting`); measure the own answers of the last (`own`).

    `last` is the last side's evaluation on `conversations`. What can't be asked is told to `note` and left
    out: the figures that are there already aren't lost to it. A side that has to be loaded is loaded anew.
    """
    general: list[Evaluation] = []
    losses: Mapping[int, RowLoss] = {}
    for at, side in enumerate(sides):
        is_last = at == len(sides) - 1
        if not forgetting and not (own and is_last):
            continue
        model = side() if callable(side) else side
        try:
            if forgetting:
                general.append(_asked(held, model, f".{at}{GENERAL_PART}", watch, note))
            if own and is_last:
                losses = _own_losses(held, model, conversations, last, watch, note)
        except (DataError, GenerateError, TemplateError) as error:
            note(f"{model.name}: a part of the findings is left out. {error.what}")
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Probes(tuple(general) if len(general) == len(sides) else (), losses)


def _asked(held: Claim, model: Completer, part: str, watch: Watch | None, note: Note) -> Evaluation:
    """The general questions, greedy and short, however the rows were answered."""

    def told(what: str, done: int, rows: int) -> None:
        tell(watch, f"{what}, general questions", done, rows)

    short = Sampling(max_new_tokens=NEW_TOKENS)
    if isinstance(model, LocalModel):
        model = replace(model, sampling=short)
    elif isinstance(model, Base):
        model = replace(model, tuned=replace(model.tuned, sampling=short))
    return measured(held, model, general_rows(), [GENERAL], part=part, watch=told, note=note)


def _own_losses(
    held: Claim,
    model: Completer,
    conversations: Sequence[Conversation],
    last: Evaluation,
    watch: Watch | None,
    note: Note,
) -> Mapping[int, RowLoss]:
    """The loss of the model's own answers to the rows that score lowest.

    Not of those that the limit cut off, whose end isn't the model's, nor of empty ones.
    """
    metric = ranking(last.metrics)
    if metric is None or not isinstance(model, LocalModel):
        return {}
    looked_at = [
        at
        for at in lowest(metric, last.rows, WORST)
        if last.rows[at].completion.finish == "stop" and last.rows[at].completion.text.strip()
    ]
    records = [
        replace(conversations[at].prompt, messages=(*conversations[at].prompt.messages, reply))
        for at in looked_at
        if (reply := Message("assistant", last.rows[at].completion.text))
    ]
    if not records:
        return {}
    said = [replace(record.prompt, references=(record.answer or "",)) for record in records]
    facts = {**model.facts(), "rows": prompts_sha256(said)[:16]}
    worklog, other = held.worklog(facts, len(records), part=OWN_PART)
    if other:
        note(other)
    done, what = frozenset(worklog.rows(OWN)), f"{model.name}: its own answers' loss"
    tell(watch, what, len(done), len(records))
    if len(done) < len(records):
        with closing(reply_losses(model, records, done)) as passes:
            for losses in passes:
                worklog.append(OWN, {at: asdict(loss) for at, loss in losses.items()})
                tell(watch, what, len(worklog.rows(OWN)), len(records))
    return {looked_at[at]: RowLoss(**row) for at, row in worklog.rows(OWN).items()}
