"""The same step in smaller forward passes, after memory has run out."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.pack import Step
from tunesmith.errors import TrainError
from tunesmith.train.training import Training, microbatch_tokens
from tunesmith.words import counted

MOST = 30  # halvings: no pass has 2^30 tokens


def halve(training: Training, cursor: tuple[int, int], done: int, place: str, rows: Sequence[int]) -> str:
    """Halve the passes, from the step after `done` on, until that step's are others; returns what to say.

    Its rows stay the same, so its loss and gradient do but for rounding. Raises TrainError where they can't
    get smaller: a pass over a single row has run out of memory.
    """
    before = _next(training, cursor, done)
    if len(rows) == 1 or all(len(each) == 1 for each in before.microbatches):
        longest = max(rows, key=lambda i: len(training.train[i].input_ids))
        example = training.train[longest]
        raise TrainError(
            f"Memory ran out in {place} of step {done + 1}, with one row at a time.",
            details=[f"{example.origin}: {len(example.input_ids):,} tokens"],
            fix="End what else needs memory and give the same command again; or train anew with a smaller "
            "data.max_length or model, train.checkpoint_activations=true or quantization=nf4.",
        )
    while training.halved < MOST:
        training.halved += 1
        training.plan()
        if _next(training, cursor, done).microbatches != before.microbatches:
            break
    size = f"{microbatch_tokens(training):,} tokens"
    if not training.packing and training.settings.batch_size:
        size = counted(max(1, training.settings.batch_size >> training.halved), "row")
    return (
        f"Memory ran out in {place} of step {done + 1}. It is taken again: the same rows, in forward passes "
        f"of {size} at most, from here on."
    )


def _next(training: Training, cursor: tuple[int, int], done: int) -> Step:
    return next(iter(training.plans.numbered(cursor, done)))[2]
