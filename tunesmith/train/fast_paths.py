"""Which fast paths a training takes, and one line on each that is off: a job is never quietly slower.

packing       rows in one sequence             else rows batched by length
segments      attention row by row             else torch's own, over the whole pack, if that still pays
sharing       common beginnings once           else for each row
fused LoRA    one function                     else PEFT's forward
chunked head  logits some labels at a time     else those of all labels at once
compilation   says itself what it lacks (compiling.py)
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from tunesmith.data.pack import computed_tokens, padded_tokens
from tunesmith.model import fused_lora
from tunesmith.model.attention import can_segment, can_share, describe
from tunesmith.model.targets import expert_weights, untuned
from tunesmith.train.config import Job
from tunesmith.train.head import why_full
from tunesmith.train.training import Training

MASKED = {2: 4.0, 4: 1.3}
"""By the bytes of a number: how much slower torch's masked attention works than a linear layer's product, per
operation (one core of the reference machine, hidden size 576, packs of 1,024 tokens)."""


def choose(job: Job, model: nn.Module, packing: bool) -> tuple[bool, bool, list[str]]:
    """(attention by segments, shared beginnings, what is off and why), for rows that are packed."""
    if not packing:
        return False, False, []
    segments, why = can_segment(model)
    if not segments:
        return False, False, [f"Attention is torch's own, at the cost of a pack's square: {why}."]
    if not job.data.share_prefixes:
        return True, False, []
    sharing, why = can_share(model)
    if job.train.neftune:
        sharing, why = False, "with NEFTune each row draws its own noise"
    return True, sharing, [] if sharing else [f"Common beginnings of rows are computed for each row: {why}."]


def settle(training: Training, why_not_packed: str) -> tuple[Training, list[str]]:
    """The training with what its plan decides, and the lines to be said."""
    if training.packing and not training.segments:
        padded = replace(training, packing=False)
        if _cost(padded) < _cost(training):
            training, why_not_packed = padded, "at these lengths padding costs less than a pack's square"
    if not training.packing:
        return training, [_bucketed(training, why_not_packed)]
    line = describe(training.model, training.device.dtype, sharing=training.sharing)
    return training, [*([line] if line else []), *(_shared(training) if training.sharing else [])]


def others_off(job: Job, model: nn.Module) -> list[str]:
    """Lines on what doesn't depend on the rows: adapter, head, experts."""
    lines = []
    if job.adapter.uses_peft:
        if why := fused_lora.why_not(model):
            lines.append(f"The adapter runs through PEFT's own forward, which is slower: {why}.")
        if job.adapter.targets == "all" and (left := untuned(model)):
            lines.append(f"Not tuned: {left}.")
    if why := why_full(model):
        lines.append(f"The logits of all labels of a pass are held at once: {why}.")
    if expert_weights(model) and getattr(getattr(model, "config", None), "output_router_logits", False):
        lines.append(
            "The loss has no balancing term for the router, although the model's config asks for one "
            "(output_router_logits): it would depend on which rows lie in one pass."
        )
    return lines


def _cost(training: Training) -> float:
    """Of the first epoch's passes, layers alone: tokens x (6 hidden sizes of products + its keys' scores)."""
    masked = MASKED[training.device.dtype.itemsize]
    hidden = training.model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    total = 0.0
    for step in training.plans.first:
        for rows in step.microbatches:
            sizes = [len(training.train[row].input_ids) for row in rows]
            width = sum(sizes) if training.packing else max(sizes)
            tokens = width if training.packing else width * len(sizes)
            total += tokens * (6 * hidden + masked * width)
    return total


def _bucketed(training: Training, why: str) -> str:
    """Why rows aren't packed, and how much of what is computed is padding."""
    lengths = [len(example.input_ids) for example in training.train]
    steps = training.plans.first
    real = sum(lengths[row] for step in steps for rows in step.microbatches for row in rows)
    share = 1 - real / padded_tokens(steps, lengths)
    return f"Rows are batched by length, not packed: {why}. {share:.1%} of the tokens are padding."


def _shared(training: Training) -> list[str]:
    """What sharing saves, counted over the first epoch."""
    steps = training.plans.first
    rows = [example.input_ids for example in training.train]
    raw = sum(len(rows[i]) for step in steps for pack in step.microbatches for i in pack)
    unique = computed_tokens(steps, rows)
    if unique == raw:
        return []
    return [
        f"Common beginnings are computed once: {unique:,} of {raw:,} tokens an epoch, "
        f"up to {raw / unique:.1f} times as fast."
    ]
