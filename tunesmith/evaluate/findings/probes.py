"""What models are asked besides the rows: general questions, and how likely they find their own answers.

Each has a worklog of its own beside the output, and is continued after a kill as answers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace

from tunesmith.data.prompts import prompts_sha256
from tunesmith.errors import DataError, GenerateError, TemplateError
from tunesmith.evaluate.answerers import Base, Note, Watch, tell
from tunesmith.evaluate.findings.changed import ranking
from tunesmith.evaluate.findings.general import GENERAL, NEW_TOKENS, are_general, general_rows
from tunesmith.evaluate.findings.wrong import can_be_compared, wrong
from tunesmith.evaluate.left_out import answered_by_all
from tunesmith.evaluate.perplexity import RowLoss, reply_losses
from tunesmith.evaluate.run import Evaluation, measured
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel
from tunesmith.infer.remote import RemoteModel
from tunesmith.records import Completer, Conversation, Message
from tunesmith.worklog import Claim

GENERAL_PART, OWN_PART = ".general", ".own"
"""What tells these worklogs of an output from those of the rows."""
OWN = "losses"


class Probes:
    """What the sides of a comparison are asked besides the rows, each in its turn, after the rows.

    Of `sides` models the first and the last are asked the general questions (`forgetting`), and the last is
    asked how likely it finds its own answers (`own`). What can't be asked is told to `note` and left out: the
    figures that are there already aren't lost to it.
    """

    def __init__(
        self,
        held: Claim,
        conversations: Sequence[Conversation],
        *,
        sides: int,
        forgetting: bool,
        own: bool,
        watch: Watch | None = None,
        note: Note = lambda _: None,
    ) -> None:
        self._held, self._conversations, self._last = held, conversations, sides - 1
        self._watch, self._note = watch, note
        # The general questions themselves are asked once; no training data is meant to hold their answers.
        others = not are_general(conversations)
        self._forgetting, self._own = forgetting and others, own and others
        self.general: dict[int, Evaluation] = {}
        """Answers to the general questions by side."""
        self.own: Mapping[int, RowLoss] = {}
        """The loss of the last side's own answers by row."""

    def __call__(self, at: int, model: Completer, evaluation: Evaluation) -> None:
        """Ask side number `at`; `evaluation` has its answers to the rows."""
        try:
            if self._forgetting and at in (0, self._last):
                self.general[at] = _asked(self._held, model, f".{at}{GENERAL_PART}", self._watch, self._note)
            if self._own and at == self._last:
                self.own = _own_losses(
                    self._held, model, self._conversations, evaluation, self._watch, self._note
                )
        except (DataError, GenerateError, TemplateError) as error:
            self._note(f"{model.name}: a part of the findings is left out. {error.what}")

    def general_pair(self) -> tuple[Evaluation, Evaluation] | None:
        """The first and the last side on the general questions that both answered; None without any."""
        if len(self.general) < 2:
            return None
        try:
            (first, last), _ = answered_by_all([self.general[0], self.general[self._last]])
        except GenerateError as error:
            self._note(f"The general questions are left out of the findings. {error.what}")
            return None
        return first, last


def _asked(held: Claim, model: Completer, part: str, watch: Watch | None, note: Note) -> Evaluation:
    """The general questions, greedy and short, however the rows were answered."""

    def told(what: str, done: int, rows: int) -> None:
        tell(watch, f"{what}, general questions", done, rows)

    short = Sampling(max_new_tokens=NEW_TOKENS)
    if isinstance(model, LocalModel | RemoteModel):
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
    """The loss of the model's own answers to the rows that are wrong, where they can be compared."""
    metric = ranking(last.metrics)
    answered = all(row.answered for row in last.rows)
    if metric is None or not answered or not isinstance(model, LocalModel):
        return {}
    looked_at = [at for at in wrong(metric, last.rows).worst if can_be_compared(last.rows[at])]
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
