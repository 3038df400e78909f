"""Loss of a model on given answers: the training's own path from row to label tokens, row by row.

    loss           sum of nll over all rows / label tokens of all rows, in nats
    perplexity     exp(loss); never a mean of perplexities, which one odd row would rule
    bits per byte  sum of nll / ln 2 / UTF-8 bytes of the answers, to compare models with unlike tokenizers

Label tokens are those of the last reply with its end token, as `train_on: last_reply` has them.
"""

from __future__ import annotations

import math
from collections.abc import Container, Generator, Sequence
from dataclasses import dataclass, replace

import torch

from tunesmith.data.batch import collate
from tunesmith.data.config import DataSettings
from tunesmith.data.encode import Example, encode
from tunesmith.data.pack import plan_eval
from tunesmith.errors import DataError
from tunesmith.evaluate.statistics import Interval, ratio
from tunesmith.infer.choosing import no_numbers
from tunesmith.infer.local import LocalModel
from tunesmith.model.attention import can_share, segment_attention
from tunesmith.model.families import can_pack
from tunesmith.records import Conversation, Message
from tunesmith.settings import build
from tunesmith.train.forward import label_logits, mixed_precision
from tunesmith.train.losses import row_losses
from tunesmith.words import are, counted

FORWARD_TOKENS = 1024  # of one forward pass; changes no result


@dataclass(frozen=True, slots=True)
class RowLoss:
    """Summed negative log-likelihood (nats) of one answer of so many label tokens and bytes of UTF-8."""

    nll_sum: float
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Loss:
    """The figures of all rows together."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int


def answer_loss(model: LocalModel, conversations: Sequence[Conversation]) -> list[RowLoss]:
    """The loss of each row's first reference as the answer to its prompt, in the order given.

    Raises DataError naming every row that is longer than the model reads, or can't be rendered, and
    GenerateError where a loss is no number.
    """
    found = {row: loss for done in answer_losses(model, conversations) for row, loss in done.items()}
    return [found[row] for row in range(len(conversations))]


def answer_losses(
    model: LocalModel, conversations: Sequence[Conversation], done: Container[int] = frozenset()
) -> Generator[dict[int, RowLoss]]:
    """What `answer_loss` gives, by the row's index and pass by pass; a pass of rows in `done` isn't computed.

    Raises as `answer_loss` does, before the first pass.
    """
    return reply_losses(model, [_answered(conversation) for conversation in conversations], done)


def reply_losses(
    model: LocalModel,
    records: Sequence[Conversation],
    done: Container[int] = frozenset(),
    *,
    sharing: bool = False,
) -> Generator[dict[int, RowLoss]]:
    """The loss of each conversation's last reply, as `answer_losses` gives them.

    `sharing`: common beginnings of rows in one pass are computed once, where the model can.
    """
    settings = build(
        DataSettings,
        {"train": "rows", "max_length": 1 << 30, "train_on": "last_reply"},
    )
    examples = encode(records, model.renderer, settings).examples
    _check_lengths(model, examples)
    packing, _ = can_pack(model.model.config)
    sharing = sharing and packing and can_share(model.model)[0]
    plan = plan_eval(
        [len(e.input_ids) for e in examples],
        microbatch_tokens=FORWARD_TOKENS,
        packing=packing,
        shared=[e.input_ids for e in examples] if sharing else None,
    )
    sizes = [len((record.answer or "").encode()) for record in records]
    was_training = model.model.training
    model.model.eval()
    try:
        for indexes in plan:
            # Rows of a pass come and go together: one alone would be rounded otherwise.
            batch = [examples[i] for i in indexes]
            if all(example.row in done for example in batch):
                continue
            with (
                torch.no_grad(),
                mixed_precision(model.device, model.model),
                segment_attention(model.model, sharing),
            ):
                losses = _losses(model, batch, packing, sharing)
            yield {
                example.row: RowLoss(nll, tokens, sizes[example.row])
                for example, (nll, tokens) in zip(batch, losses, strict=True)
            }
        without = set(range(len(records))) - {example.row for example in examples}
        if bare := {row: RowLoss(0.0, 0, sizes[row]) for row in sorted(without) if row not in done}:
            yield bare
    finally:
        model.model.train(was_training)


def intervals(rows: Sequence[RowLoss]) -> dict[str, Interval]:
    """The figures of `total` with their intervals, by name, rows resampled; none where no row differs.

    Rows of one document aren't independent: what is handed in then are their sums (`figures.losses_of`).
    """
    nll, tokens, size = [r.nll_sum for r in rows], [r.tokens for r in rows], [r.bytes for r in rows]
    found = {"loss": ratio(nll, tokens)}
    if all(size):
        found["bits_per_byte"] = ratio([each / math.log(2) for each in nll], size)
    # None of them can be below 0, though Student's interval of a few rows reaches there.
    kept = {name: replace(one, low=max(0.0, one.low)) for name, one in found.items() if one is not None}
    if loss := kept.get("loss"):
        ends = (math.exp(min(end, 700.0)) for end in (loss.value, loss.low, loss.high))
        kept["perplexity"] = Interval(*ends)
    return kept


def _check_lengths(model: LocalModel, examples: Sequence[Example]) -> None:
    limit = model.context
    if too_long := [e for e in examples if limit is not None and len(e.input_ids) > limit]:
        raise DataError(
            f"{counted(len(too_long), 'row')} {are(len(too_long))} longer than {model.name} reads: {limit} "
            "tokens, prompt and answer together.",
            details=[f"{example.origin}: {len(example.input_ids)} tokens" for example in too_long],
            fix="Shorten these rows or leave them out.",
        )


def total(rows: Sequence[RowLoss]) -> Loss:
    """All rows together: sums first, then one division."""
    nll, tokens, size = sum(r.nll_sum for r in rows), sum(r.tokens for r in rows), sum(r.bytes for r in rows)
    loss = nll / tokens
    bits = nll / math.log(2) / size if size else None
    return Loss(loss, math.exp(min(loss, 700.0)), bits, tokens)


def _losses(
    model: LocalModel, batch: Sequence[Example], packing: bool, sharing: bool
) -> list[tuple[float, int]]:
    # Padding is told apart by length, so its id is of no consequence.
    laid = collate(batch, packing=packing, pad_id=0, sharing=sharing).to(model.device.torch_device)
    logits = label_logits(model.model, laid)
    # Targets follow the order of rows, each with as many as its mask has.
    labels = torch.tensor([sum(example.label_mask[1:]) for example in batch], device=logits.device)
    rows = torch.repeat_interleave(torch.arange(len(batch), device=logits.device), labels)
    sums, counts = row_losses(logits, laid.targets, rows, len(batch))
    if not bool(sums.isfinite().all()):
        raise no_numbers()
    return list(zip(sums.tolist(), counts.tolist(), strict=True))


def _answered(conversation: Conversation) -> Conversation:
    asked = conversation.prompt.messages
    reply = conversation.answer if conversation.answer is not None else conversation.references[0]
    return replace(conversation, messages=(*asked, Message("assistant", reply)))
